-- All rates and quotas of one call, judged and counted at once, by this server's clock.
-- For each key three arguments: "r", microseconds a call, calls (a rate: GCRA);
-- "d" or "m", calls, offset of the time zone in seconds (a quota of the day or month).
-- Gives {0}, or {place of the key that refuses, microseconds to wait, end of the window in seconds}.

local time = redis.call('TIME')
local now_s = tonumber(time[1])
local now = now_s * 1000000 + tonumber(time[2])

-- The first day of the next month, in days since 1970-01-01; years begin in March. The same rule as in calendar.rs.
local function next_month(day)
  day = day + 719468
  local era = math.floor(day / 146097)
  local of_era = day - era * 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  if month == 11 then
    year = era * 400 + year + 1
    return 365 * year + math.floor(year / 4) - math.floor(year / 100) + math.floor(year / 400) - 719468
  end
  return day - of_year + math.floor((153 * (month + 1) + 2) / 5) - 719468
end

local function window_end(window, offset)
  local today = math.floor((now_s + offset) / 86400)
  local last = today + 1
  if window == 'm' then last = next_month(today) end
  return last * 86400 - offset
end

local quotas = {}
for i, key in ipairs(KEYS) do
  local kind = ARGV[3 * i - 2]
  local first, second = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  if kind == 'r' then
    local full = first * second
    -- No arrival lies further ahead than a full bucket, whatever became of the clock.
    local arrival = math.min(tonumber(redis.call('GET', key) or now), now + full)
    local next = math.max(arrival, now) + first
    if next - now > full then return {i, next - now - full, 0} end
    redis.call('SET', key, string.format('%.0f', next), 'PX', string.format('%.0f', math.ceil((next - now) / 1000)))
  else
    local ends = window_end(kind, second)
    if tonumber(redis.call('GET', key) or 0) >= first then return {i, ends * 1000000 - now, ends} end
    quotas[key] = ends
  end
end
for key, ends in pairs(quotas) do
  if redis.call('INCR', key) == 1 then redis.call('EXPIREAT', key, string.format('%.0f', ends)) end
end
return {0}
