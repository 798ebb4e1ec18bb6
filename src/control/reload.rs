//! SIGHUP and `POST /v1/reload`: reads the configuration again and applies what can change while
//! the server runs.
//!
//! Arguments and environment are those of the start, so what can differ is the file. Either all of
//! it is right and its live settings are in force, or nothing has changed. Nobody is disconnected.
//! Everything happens on the control thread, so there is one reload at a time.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::api::{self, Api, LiveLimits, Refusal};
use super::failure::Failure;
use super::keys::{KeyError, Keys};
use super::refusal::Code;
use crate::config::{Change, ConfigError, Loaded};
use crate::logging::Threshold;
use crate::shard::thread::{Controls, ShardBusy};

/// Reads the configuration from where it was read at the start.
pub type Load = fn() -> Result<Loaded, ConfigError>;

/// `POST /v1/reload`.
pub(super) async fn reload(State(api): State<Api>) -> Result<Response, Refusal> {
    if api.health.refuses() {
        return Err(Failure::Draining.into());
    }
    Ok(match api.reloader.lock().reload("POST /v1/reload") {
        Ok(Reloaded { changed, needs_restart }) => {
            let body = json!({"changed": list(&changed), "needs_restart": list(&needs_restart)});
            api::json(StatusCode::OK, body.to_string().into_bytes())
        }
        Err(error) => {
            let (status, code) = match error {
                ReloadError::Config(_) | ReloadError::Keys(_) => {
                    (StatusCode::UNPROCESSABLE_ENTITY, const { Code::of("invalid_configuration") })
                }
                ReloadError::Busy(_) => {
                    (StatusCode::SERVICE_UNAVAILABLE, const { Code::of("server_busy") })
                }
            };
            let message = format!("{error}; nothing has changed");
            let body = json!({"error": {"code": code.name(), "message": message}});
            let mut response = api::json(status, body.to_string().into_bytes());
            response.extensions_mut().insert(code);
            response
        }
    })
}

fn list(changes: &[Change]) -> Value {
    let entry = |Change { key, old, new, .. }: &Change| json!({"key": key, "old": old, "new": new});
    changes.iter().map(entry).collect()
}

/// A [`Reloader`] that signals and requests share.
#[derive(Debug, Clone)]
pub(super) struct SharedReloader(Arc<Mutex<Reloader>>);

impl SharedReloader {
    pub(super) fn new(reloader: Reloader) -> Self {
        Self(Arc::new(Mutex::new(reloader)))
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Reloader> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is in force, and how to change it.
#[derive(Debug)]
pub(super) struct Reloader {
    pub(super) load: Load,
    /// In force now.
    pub(super) loaded: Loaded,
    pub(super) log: Threshold,
    pub(super) keys: Keys,
    pub(super) controls: Controls,
    /// How many shards run, whatever the settings say.
    pub(super) shards: usize,
    pub(super) limits: LiveLimits,
}

/// What came of a reload.
#[derive(Debug)]
pub(super) struct Reloaded {
    /// Has another value from now on.
    pub(super) changed: Vec<Change>,
    /// Would have one after a restart.
    pub(super) needs_restart: Vec<Change>,
}

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    /// The configuration is wrong, or its live settings do not fit the others.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys of the admin interface cannot be had.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// A shard cannot be told.
    #[error(transparent)]
    Busy(#[from] ShardBusy),
}

impl Reloader {
    /// Reads the configuration and applies it, because of what `why` names; says in the log what
    /// came of it.
    pub(super) fn reload(&mut self, why: &str) -> Result<Reloaded, ReloadError> {
        self.try_reload(why).inspect_err(|error| error!("{why}: {error}; nothing has changed"))
    }

    fn try_reload(&mut self, why: &str) -> Result<Reloaded, ReloadError> {
        let new = (self.load)()?;
        let reloaded = self.loaded.with_live(&new)?;
        // Read also if the setting is the same: what it names may not be.
        let keys = Keys::read(&new.settings.admin_key_file)?;
        let per_shard = self.limits.get().connections_per_shard_max;
        let limits = Arc::new(reloaded.settings.limits(self.shards, per_shard));
        self.controls.set_limits(Arc::clone(&limits))?;
        self.limits.set(limits);
        self.keys.replace(keys);
        let old = std::mem::replace(&mut self.loaded, reloaded).settings;
        let (changed, needs_restart): (Vec<_>, Vec<_>) =
            old.changes(&new.settings).into_iter().partition(|change| change.is_live);

        // What is said here counts as important by the old level or by the new one.
        self.log.set(old.log_level.max(new.settings.log_level));
        for warning in &new.warnings {
            warn!("{why}: {warning}");
        }
        if changed.is_empty() {
            info!("{why}: nothing has changed");
        } else {
            info!("{why}: {}", text(&changed));
        }
        if !needs_restart.is_empty() {
            warn!("{why}: restart the server for {}", text(&needs_restart));
        }
        self.log.set(new.settings.log_level);
        Ok(Reloaded { changed, needs_restart })
    }
}

fn text(changes: &[Change]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
