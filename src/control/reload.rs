//! SIGHUP: reads the configuration again and applies what can change while the server runs.
//!
//! Arguments and environment are those of the start, so what can differ is the file. Either all of
//! it is right and its live settings are in force, or nothing has changed. Nobody is disconnected.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::api::LiveLimits;
use crate::config::{Change, ConfigError, Loaded};
use crate::logging::Threshold;
use crate::shard::thread::Controls;

/// Reads the configuration from where it was read at the start.
pub type Load = fn() -> Result<Loaded, ConfigError>;

/// What is in force, and how to change it.
pub(super) struct Reloader {
    pub(super) load: Load,
    /// In force now.
    pub(super) loaded: Loaded,
    pub(super) log: Threshold,
    pub(super) controls: Controls,
    /// How many shards run, whatever the settings say.
    pub(super) shards: usize,
    pub(super) limits: LiveLimits,
}

impl Reloader {
    /// Reads the configuration and applies it; says in the log what came of it.
    pub(super) fn reload(&mut self) {
        let (new, reloaded) = match (self.load)().and_then(|new| {
            let reloaded = self.loaded.with_live(&new)?;
            Ok((new.settings, reloaded))
        }) {
            Ok(loaded) => loaded,
            Err(error) => return error!("SIGHUP: {error}; nothing has changed"),
        };
        let (live, rest): (Vec<_>, Vec<_>) =
            self.loaded.settings.changes(&new).into_iter().partition(|change| change.is_live);
        // What is said here counts as important by the old level or by the new one.
        self.log.set(self.loaded.settings.log_level.max(new.log_level));
        let per_shard = self.limits.get().connections_per_shard_max;
        let limits = Arc::new(reloaded.settings.limits(self.shards, per_shard));
        if let Err(error) = self.controls.set_limits(Arc::clone(&limits)) {
            return error!("SIGHUP: {error}; nothing has changed");
        }
        self.limits.set(limits);
        if live.is_empty() {
            info!("SIGHUP: nothing has changed");
        } else {
            info!("SIGHUP: {}", list(&live));
        }
        if !rest.is_empty() {
            warn!("SIGHUP: restart the server for {}", list(&rest));
        }
        self.log.set(new.log_level);
        self.loaded = reloaded;
    }
}

fn list(changes: &[Change]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
