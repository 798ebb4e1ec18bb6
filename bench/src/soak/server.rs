//! The server under soak: a process of our own, with a configuration that changes while it runs.
//!
//! There are two configurations, which differ in settings that every connection feels. A reload
//! goes from one to the other, in turn by SIGHUP and by `POST /v1/reload`. The answer of the second
//! names what it has changed, and so shows that the first was applied, too.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Deserialize;
use thiserror::Error;

use crate::child::{Owned, Signal, Waited, bound, free_address, said};
use crate::cli::Target;
use crate::http::{Client, HttpError};

/// The settings in which the two configurations differ, with their values in each.
const CHANGING: [(&str, [&str; 2]); 3] = [
    ("high_water_mark", [r#""512KiB""#, r#""1MiB""#]),
    ("ping_interval", [r#""5s""#, r#""7s""#]),
    (
        "room_policy",
        [r#"["soak-skip=drop-oldest/64KiB"]"#, r#"["soak-skip=skip-to-newest/128KiB"]"#],
    ),
];

/// Why there is no server, or it does not do what it should.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A file, a process, a port.
    #[error("cannot start the server: {0}")]
    Start(#[from] io::Error),
    /// What it says instead of listening.
    #[error("the server does not start: {0}")]
    Silent(String),
    /// It refused a reload, or is gone.
    #[error("the reload failed: {0}")]
    Reload(#[from] HttpError),
    /// It applied something else than what was asked for.
    #[error("the reload changed {found:?} and not {expected:?}")]
    Changed {
        /// What it says that it changed.
        found: Vec<String>,
        /// What differs.
        expected: Vec<String>,
    },
    /// It ended too early, or not with 0.
    #[error("the server has not ended well: {0}")]
    End(String),
}

/// See the module documentation.
#[derive(Debug)]
pub struct Server {
    /// Where clients connect.
    pub address: SocketAddr,
    /// Its HTTP API.
    pub admin: Target,
    child: Owned,
    config: PathBuf,
    log: PathBuf,
    reloads: u32,
}

/// The answer to a reload.
#[derive(Debug, Deserialize)]
struct Reloaded {
    changed: Vec<Changed>,
}

#[derive(Debug, Deserialize)]
struct Changed {
    key: String,
}

impl Server {
    /// Starts `binary` and waits until it listens; its configuration and log are below `work`.
    ///
    /// # Errors
    /// [`ServerError`]
    pub fn start(
        binary: &Path,
        shards: u32,
        work: &Path,
        interrupted: &AtomicBool,
    ) -> Result<Self, ServerError> {
        let (address, admin) = (free_address()?, free_address()?);
        let (config, log) = (work.join("fanwire.toml"), work.join("server.log"));
        let mut command = bound(binary);
        // It states every setting itself: none of the caller's environment may change one.
        let inherited = std::env::vars_os().map(|(name, _)| name);
        for name in inherited.filter(|name| name.as_encoded_bytes().starts_with(b"FANWIRE_")) {
            command.env_remove(name);
        }
        command.arg("serve").arg("--config").arg(&config);
        let (listen, own) = (address.to_string(), admin.to_string());
        command.args(["--listen", &listen, "--admin", &own, "--shards", &shards.to_string()]);
        // With the default of 1 MiB the marks above would be too small for a message.
        command.args(["--echo", "--ws-message-bytes-max", "64KiB"]);
        command.args(["--raw-message-bytes-max", "64KiB"]);
        fs::write(&config, configuration(0))?;
        let mut child = Owned::start(&mut command, &log)?;
        match child.wait_until_listening(address, interrupted)? {
            Waited::Done => {}
            Waited::Interrupted => return Err(ServerError::Silent("interrupted".to_owned())),
            Waited::Failed | Waited::TimedOut => return Err(ServerError::Silent(said(&log))),
        }
        let admin = Target { host: own, address: admin };
        Ok(Self { address, admin, child, config, log, reloads: 0 })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn lives(&mut self) -> io::Result<bool> {
        Ok(self.child.poll()?.is_none())
    }

    /// Goes over to the other configuration, in turn by a signal and by a request.
    ///
    /// # Errors
    /// [`ServerError`]; that a signal had no effect is found by the request that follows it.
    pub fn reload(&mut self) -> Result<(), ServerError> {
        self.reloads += 1;
        fs::write(&self.config, configuration(self.reloads))?;
        if self.reloads % 2 == 1 {
            self.child.signal(Signal::HUP);
            return Ok(());
        }
        let mut client = Client::connect(&self.admin).map_err(HttpError::from)?;
        let answer = client.ask("POST", "/v1/reload", b"")?;
        let answer: Reloaded = serde_json::from_slice(&answer)
            .map_err(|_| HttpError::Item(String::from_utf8_lossy(&answer).into_owned()))?;
        let mut found: Vec<_> = answer.changed.into_iter().map(|changed| changed.key).collect();
        found.sort();
        let expected: Vec<_> = CHANGING.iter().map(|(key, _)| (*key).to_owned()).collect();
        if found == expected { Ok(()) } else { Err(ServerError::Changed { found, expected }) }
    }

    /// How often it has gone over to another configuration.
    #[must_use]
    pub fn reloads(&self) -> u32 {
        self.reloads
    }

    /// Lets it drain and waits for its end, which must be a good one.
    ///
    /// # Errors
    /// [`ServerError::End`]
    pub fn end(mut self) -> Result<(), ServerError> {
        self.child.signal(Signal::TERM);
        match self.child.wait(&AtomicBool::new(false))? {
            Waited::Done => Ok(()),
            _ => Err(ServerError::End(said(&self.log))),
        }
    }
}

/// The file of configuration number `number`.
fn configuration(number: u32) -> String {
    let line = |(key, values): &(&str, [&str; 2])| {
        format!("{key} = {}\n", values[number as usize % values.len()])
    };
    CHANGING.iter().map(line).collect()
}
