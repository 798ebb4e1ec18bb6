//! From settings to a plan: what the host was checked for, and the line that says what came of it.
//!
//! The settings leave things open (`auto`, port 0) that only the host can answer.
//! [`Startup::check`] asks it, in an order in which the first failure is also the root of the
//! others, and starts nothing: a server that cannot run has done nothing to the host but raise its
//! own soft limit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{CpuList, SHARDS_MAX, Settings};
use crate::io::host;
use crate::shard::thread::Plan;

use super::ServeError;

/// A server that can be started on this host.
pub(super) struct Startup {
    pub(super) plan: Plan,
    descriptor_limit: u64,
}

impl Startup {
    /// Checks the host and works out what the settings leave open.
    ///
    /// # Errors
    /// The kinds that need no thread: `Host`, `Listen`, and `Conflict` with what the host offers.
    pub(super) fn check(settings: &Settings) -> Result<Startup, ServeError> {
        let descriptor_limit = host::raise_descriptor_limit()?;
        host::check_kernel()?;
        let cpus = host::shard_cpus(settings.cpus.as_set().map(CpuList::as_slice))?;
        let shards = settings.shard_count(cpus.len());
        let connections_per_shard =
            host::connections_per_shard(descriptor_limit, settings.listen.len(), shards)?;
        let limits = settings.limits(shards, connections_per_shard);
        let listen = host::probe(&settings.listen)?;
        Ok(Startup { plan: Plan { shards, cpus, listen, limits }, descriptor_limit })
    }

    /// The one line of a successful start: addresses, shards, CPUs, how many connections fit and
    /// what limits them, the page's URL. Its last word is "ready".
    pub(super) fn announcement(&self, admin: Option<SocketAddr>) -> String {
        let Plan { shards, cpus, listen, limits } = &self.plan;
        let addresses = listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let admin = admin.map_or("off".into(), |admin| format!("on http://{admin}/"));
        let plural = if *shards == 1 { "" } else { "s" };
        let cpus = CpuList::from(cpus.clone());
        let connections_max = limits.connections_max;
        let limited_by = self.limited_by();
        let page = reachable(listen[0]);
        format!(
            "listening on {addresses}; admin {admin}; {shards} shard{plural} on CPU {cpus}; holds \
             up to {connections_max} connections, limited by {limited_by}; page http://{page}/; \
             ready"
        )
    }

    /// What bounds the number of connections, and what would raise it.
    fn limited_by(&self) -> String {
        let Plan { shards, limits, .. } = &self.plan;
        if limits.connections_max < shards.saturating_mul(limits.connections_per_shard_max) {
            return "connections_max".into();
        }
        let for_a_million = host::shards_for(MILLION, limits.connections_per_shard_max);
        let more_shards = if (shards + 1..=SHARDS_MAX).contains(&for_a_million) {
            format!("; --shards {for_a_million} would hold a million")
        } else {
            String::new()
        };
        format!(
            "RLIMIT_NOFILE {} per shard (raise it with ulimit -n or systemd's LimitNOFILE\
             {more_shards})",
            self.descriptor_limit
        )
    }
}

/// What people come for: the number of shards is suggested that holds it.
const MILLION: usize = 1_000_000;

/// An address a browser on this host can open: the loopback one where all interfaces are meant.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests;
