// A browser without a window: follows redirects with cookies, and sends the forms it meets as they are.
// usage: node browser.mjs URL [--stop]    ends at the first page without a form, or, with --stop, before it leaves the
// origin it began at for another: prints that address. Waits for no person: the provider must let everybody in.
const STEPS_MAX = 30;

export async function walk(start, { stop = false } = {}) {
  const jar = new Map();
  let url = new URL(start);
  let request = { method: 'GET' };
  for (let step = 0; step < STEPS_MAX; step += 1) {
    const headers = { accept: 'text/html', cookie: [...jar].map(([name, value]) => `${name}=${value}`).join('; ') };
    if (request.body) headers['content-type'] = 'application/x-www-form-urlencoded';
    const response = await fetch(url, { ...request, headers, redirect: 'manual' });
    for (const cookie of response.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(cookie) ?? [];
      if (value) jar.set(name, value);
      else jar.delete(name);
    }
    const location = response.headers.get('location');
    if (location) {
      url = new URL(location, url);
      request = { method: 'GET' };
      if (stop && url.origin !== new URL(start).origin) return url.href;
      continue;
    }
    const page = await response.text();
    const form = /<form[^>]*>[\s\S]*?<\/form>/i.exec(page)?.[0];
    if (!form) {
      if (stop || !response.ok) throw new Error(`the walk ended with ${response.status} at ${url}: ${page.slice(0, 500)}`);
      return url.href;
    }
    const attribute = (tag, name) => new RegExp(`\\b${name}="([^"]*)"`, 'i').exec(tag)?.[1];
    const fields = new URLSearchParams();
    for (const [tag] of form.matchAll(/<input[^>]*>/gi)) {
      if (attribute(tag, 'name')) fields.append(attribute(tag, 'name'), attribute(tag, 'value') ?? '');
    }
    url = new URL((attribute(form, 'action') ?? url.href).replaceAll('&amp;', '&'), url);
    request = { method: 'POST', body: fields.toString() };
  }
  throw new Error(`more than ${STEPS_MAX} steps, last ${url}`);
}

if (import.meta.filename === process.argv[1]) {
  console.log(await walk(process.argv[2], { stop: process.argv.includes('--stop') }));
}
