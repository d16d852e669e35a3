//! The two protocol eras: legacy (sessions, up to 2025-11-25) and modern (stateless, 2026-07-28 and later).

/// Revisions of the legacy era, newest first.
pub const LEGACY_VERSIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// Revisions of the modern era, newest first.
pub const MODERN_VERSIONS: [&str; 1] = ["2026-07-28"];

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Era {
    Legacy,
    Modern,
}

impl Era {
    /// The era of a version we speak; `None` for a version we do not.
    pub fn of(version: &str) -> Option<Era> {
        if MODERN_VERSIONS.contains(&version) {
            Some(Era::Modern)
        } else if LEGACY_VERSIONS.contains(&version) {
            Some(Era::Legacy)
        } else {
            None
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Era::Legacy => "legacy",
            Era::Modern => "modern",
        }
    }
}
