//! SIGHUP: reads the configuration again and applies what can change while the server runs.
//!
//! Arguments and environment are those of the start, so what can differ is the file. Either all of
//! it is right and its live settings are in force, or nothing has changed. Nobody is disconnected.

use tracing::{error, info, warn};

use crate::config::{Change, ConfigError, Loaded, Settings};
use crate::logging::Threshold;
use crate::shard::thread::Controls;

/// Reads the configuration from where it was read at the start.
pub type Load = fn() -> Result<Loaded, ConfigError>;

/// What is in force, and how to change it.
pub(super) struct Reloader {
    pub(super) load: Load,
    /// In force now.
    pub(super) settings: Settings,
    pub(super) log: Threshold,
    pub(super) controls: Controls,
}

impl Reloader {
    /// Reads the configuration and applies it; says in the log what came of it.
    pub(super) fn reload(&mut self) {
        let new = match (self.load)() {
            Ok(loaded) => loaded.settings,
            Err(error) => return error!("SIGHUP: {error}; nothing has changed"),
        };
        let (live, rest): (Vec<_>, Vec<_>) =
            self.settings.changes(&new).into_iter().partition(|change| change.is_live);
        // What is said here counts as important by the old level or by the new one.
        self.log.set(self.settings.log_level.max(new.log_level));
        if let Err(error) = self.controls.set_heartbeats(new.heartbeats()) {
            error!("SIGHUP: {error}");
        }
        if live.is_empty() {
            info!("SIGHUP: nothing has changed");
        } else {
            info!("SIGHUP: {}", list(&live));
        }
        if !rest.is_empty() {
            warn!("SIGHUP: restart the server for {}", list(&rest));
        }
        self.log.set(new.log_level);
        self.settings = self.settings.with_live(&new);
    }
}

fn list(changes: &[Change]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
