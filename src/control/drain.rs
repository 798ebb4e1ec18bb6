//! SIGTERM and SIGINT: says what is going to happen, tells the shards, and reports how it goes.

use std::time::Duration;

use tracing::{info, warn};

use super::api::{Health, LiveLimits};
use crate::config::Limits;
use crate::shard::drain;
use crate::shard::metrics::ShardMetrics;
use crate::shard::thread::{Controls, Totals};

/// Between two lines about the progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Drains, because `why`. Never comes back: the main thread ends the process when the shards have
/// ended, and until then `/health` is answered.
pub(super) async fn drain(
    why: &str,
    delay: Duration,
    limits: &LiveLimits,
    health: &Health,
    controls: &Controls,
    totals: &Totals,
) -> ! {
    health.set_draining();
    if !delay.is_zero() {
        info!("{why}: not ready from now on, draining in {delay:?}; a second signal exits at once");
        monoio::time::sleep(delay).await;
    }
    let connections = totals.of(|shard| shard.connections.value());
    // As they are now: a reload may have come during the delay.
    announce(why, connections, &limits.get());
    health.set_refusing();
    controls.drain();
    loop {
        monoio::time::sleep(REPORT_INTERVAL).await;
        let (closed, left) =
            (totals.of(ShardMetrics::drained), totals.of(|it| it.connections.value()));
        info!("draining: {closed} of {connections} connections closed, {left} left");
    }
}

fn announce(why: &str, connections: u64, limits: &Limits) {
    let timeout = limits.drain_timeout;
    let rate = drain::rate(limits.drain_rate, timeout, connections as usize);
    info!(
        "{why}: draining {connections} connections, {rate:.0} per second; a second signal exits at \
         once"
    );
    let in_time = (rate * timeout.as_secs_f64()) as u64;
    if in_time < connections {
        warn!(
            "drain_rate {rate:.0} closes {in_time} of {connections} connections within drain_timeout \
             {timeout:?}; the others are cut then: raise one of the two"
        );
    }
}
