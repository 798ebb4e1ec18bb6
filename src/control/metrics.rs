//! `GET /metrics`: what the shards count, in the words of Prometheus.
//!
//! OpenMetrics 1.0 for who asks for it, the older text format 0.0.4 for everybody else. The crate
//! writes OpenMetrics. In 0.0.4, [`to_text`], a counter's family has the name of its samples,
//! `_total` and all, and there is no end mark; nothing else differs in what is used here.
//!
//! Labels are few: numbers of shards, and the names of states, outcomes, reasons and codes that the
//! server itself knows. Nothing a client sends becomes one. docs/metrics.md lists all families; a
//! test holds it, the dashboard and the alert rules against a running server.

use std::fmt;

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::api::Api;
use crate::auth::TokenError;
use crate::dialect::native::ErrorCode;
use crate::protocol::HandshakeError;
use crate::shard::histogram::{Counts, Histogram};
use crate::shard::metrics::{Counter, ShardMetrics};

/// Answers with all metrics.
pub(super) async fn report(State(api): State<Api>, head: HeaderMap) -> Response {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(api)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes everything");
    let accept = head.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if prefers_openmetrics(&accept.collect::<Vec<_>>().join(",")) {
        ([(CONTENT_TYPE, OPENMETRICS)], text).into_response()
    } else {
        ([(CONTENT_TYPE, TEXT)], to_text(&text)).into_response()
    }
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether an Accept field wants OpenMetrics more than text, or as much and by name (RFC 9110
/// section 12.5.1).
fn prefers_openmetrics(accept: &str) -> bool {
    let quality = |kinds: [&str; 3]| {
        let of = |kind| accept.split(',').filter_map(|it| quality(it, kind)).reduce(f64::max);
        // The first that is there counts: it is the most specific.
        kinds.into_iter().find_map(of).unwrap_or(0.0)
    };
    let openmetrics = quality(["application/openmetrics-text", "application/*", "*/*"]);
    let text = quality(["text/plain", "text/*", "*/*"]);
    let is_named = accept.to_ascii_lowercase().contains("application/openmetrics-text");
    openmetrics > text || (openmetrics > 0.0 && openmetrics == text && is_named)
}

/// How much an element of an Accept field wants `kind`, if it names that.
fn quality(element: &str, kind: &str) -> Option<f64> {
    let mut words = element.split(';').map(str::trim);
    let is_named = words.next().is_some_and(|name| name.eq_ignore_ascii_case(kind));
    let value = |word: &str| {
        let (name, value) = word.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse().unwrap_or(0.0))
    };
    is_named.then(|| words.find_map(value).unwrap_or(1.0))
}

/// The same in the text format 0.0.4. See the module documentation.
fn to_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().filter(|line| *line != "# EOF").peekable();
    while let Some(line) = lines.next() {
        // The type follows the help.
        let kind = if line.starts_with("# HELP ") { lines.peek().unwrap_or(&line) } else { &line };
        let is_head = line.starts_with("# ");
        match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            [_, keyword, name, rest] if is_head && kind.ends_with(" counter") => {
                text.extend(["# ", keyword, " ", name, "_total ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// All families, read from the counters as they are written down.
#[derive(Debug)]
struct Families(Api);

/// Names and values of the labels of one sample.
type Labels = Vec<(&'static str, String)>;

impl Collector for Families {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let api = &self.0;
        let shards: Vec<&ShardMetrics> =
            api.monitor.shards().iter().map(|shard| &*shard.metrics).collect();
        let mut page = Page { encoder, shards: &shards };
        page.clients(api)?;
        page.messages()?;
        page.inside()?;
        page.process(api)
    }
}

/// Writes families one after the other.
struct Page<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    shards: &'a [&'a ShardMetrics],
}

impl Page<'_, '_> {
    /// Who is there, who came, who went.
    fn clients(&mut self, api: &Api) -> fmt::Result {
        let open = self.sum(|m| m.open.value());
        self.gauge(
            "websocket_active_connections",
            "WebSocket connections that are open: upgraded and not closing.",
            open as i64,
        )?;
        let of = |state: &'static str, count: u64| {
            move |shard: usize| {
                (vec![("shard", shard.to_string()), ("state", state.to_owned())], count as i64)
            }
        };
        let states = self.shards.iter().enumerate().flat_map(|(shard, m)| {
            let (all, handshakes, open) =
                (m.connections.value(), m.handshakes.value(), m.open.value());
            let closing = all.saturating_sub(handshakes + open);
            [of("handshake", handshakes), of("open", open), of("closing", closing)]
                .map(|sample| sample(shard))
        });
        let states: Vec<_> = states.collect();
        self.gauges(
            "fanwire_connections",
            "Connections by shard and state: in the opening handshake, open, or closing.",
            states,
        )?;
        self.gauge(
            "fanwire_connections_max",
            "Connections that the server may hold; past it handshakes are refused with 503.",
            api.limits.get().connections_max as i64,
        )?;
        self.total(
            "fanwire_connections_accepted",
            "Connections accepted, whatever became of them.",
            |m| &m.accepted,
        )?;
        let outcome = |name: &str, count| (vec![("outcome", name.to_owned())], count);
        let mut outcomes = vec![
            outcome("opened", self.sum(|m| m.opened.value())),
            outcome("page", self.sum(|m| m.answered.value())),
            outcome("abandoned", self.sum(|m| m.abandoned.value())),
        ];
        outcomes.extend(HandshakeError::ALL.map(|error| {
            let count = self.shards.iter().map(|m| m.refused[error as usize].value()).sum();
            outcome(error.label(), count)
        }));
        self.counters(
            "fanwire_handshakes",
            "Opening handshakes that are over, by outcome: opened (101), page, abandoned by the \
             client, or the reason of the refusal.",
            outcomes,
        )?;
        let refused = TokenError::ALL.map(|error| {
            let count = self.sum(|m| m.tokens_refused[error as usize].value());
            (vec![("reason", error.label().to_owned())], count)
        });
        self.counters(
            "fanwire_tokens_refused",
            "Tokens that were not accepted, at a handshake or on an open connection, by reason.",
            refused.to_vec(),
        )?;
        self.total(
            "fanwire_forbidden",
            "Joins, publishes and direct messages that a token did not allow.",
            |m| &m.forbidden,
        )?;
        let errors = ErrorCode::ALL.map(|code| {
            let count = self.sum(|m| m.errors[code as usize].value());
            (vec![("code", code.code().to_owned())], count)
        });
        self.counters(
            "fanwire_errors",
            "Requests of native clients that were answered with an error, by its code.",
            errors.to_vec(),
        )?;
        self.counters(
            "fanwire_admin_refused",
            "Requests to the admin interface that were refused, and refused items of batches, by \
             the code in the answer.",
            api.refusals.counts().map(|(code, n)| (vec![("code", code.to_owned())], n)).collect(),
        )?;
        self.histogram(
            "fanwire_handshake_seconds",
            "Time from accepting a connection to its 101, the client's part in it included.",
            |m| &m.handshake_time,
        )?;
        let mut endings: Vec<(Labels, u64)> = Vec::new();
        for (index, metrics) in self.shards.iter().enumerate() {
            for (place, (reason, code, count)) in metrics.disconnects().enumerate() {
                if index == 0 {
                    endings.push((vec![("reason", reason.to_owned()), ("code", code)], count));
                } else {
                    endings[place].1 += count;
                }
            }
        }
        self.counters(
            "fanwire_disconnects",
            "Open connections that ended, by reason and by the code of the close frame that was \
             sent; none: there was no close, or no code in it.",
            endings,
        )?;
        self.total("fanwire_pings", "Pings sent to idle connections.", |m| &m.pings_sent)?;
        self.total("fanwire_pongs", "Pongs received.", |m| &m.pongs)
    }

    /// What goes through.
    fn messages(&mut self) -> fmt::Result {
        self.total(
            "websocket_messages_received",
            "Messages received from clients: text and binary, not control frames.",
            |m| &m.messages,
        )?;
        let sent = self.sum(ShardMetrics::messages_sent);
        self.counter(
            "websocket_messages_sent",
            "Messages sent to clients: deliveries of rooms, answers, acknowledgements, echoes.",
            sent,
        )?;
        self.total("fanwire_received_bytes", "Bytes received from clients.", |m| {
            &m.bytes_received
        })?;
        self.total("fanwire_sent_bytes", "Bytes that sockets took for clients.", |m| {
            &m.bytes_sent
        })?;
        self.per_shard_total(
            "fanwire_publishes",
            "Publishes that got an offset, by the home shard of their room.",
            |m| m.published.value(),
        )?;
        self.per_shard_total(
            "fanwire_deliveries",
            "Messages of rooms that were sent to members: one per message and member.",
            |m| m.deliveries.value(),
        )?;
        self.total(
            "fanwire_sends",
            "Sends to members of rooms. Deliveries per send tell how much travels together.",
            |m| &m.sends,
        )?;
        self.total(
            "fanwire_short_sends",
            "Sends that found the socket of a client full: it reads slower than it is sent to.",
            |m| &m.sends_short,
        )?;
        self.total("fanwire_directs", "Direct messages that clients sent.", |m| &m.directs)?;
        self.total(
            "fanwire_direct_deliveries",
            "Connections that were handed a direct message: one per message and connection.",
            |m| &m.directs_delivered,
        )?;
        let skipped = vec![
            (policy("skip-to-newest"), self.sum(|m| m.skipped_to_newest.value())),
            (policy("drop-oldest"), self.sum(|m| m.dropped_oldest.value())),
        ];
        self.counters(
            "fanwire_skipped_messages",
            "Messages that slow members were not sent, by the policy of their room: one per \
             message and member.",
            skipped,
        )?;
        self.histogram(
            "fanwire_publish_seconds",
            "Time from the offset of a publish to the last send of the sweep that carries it, one \
             per sweep and shard, for the oldest message in it. Slow members do not count.",
            |m| &m.publish_time,
        )
    }

    /// What shards hold and how they do.
    fn inside(&mut self) -> fmt::Result {
        self.per_shard("fanwire_rooms", "Rooms that somebody is in, by home shard.", |m| {
            m.rooms.value()
        })?;
        self.per_shard(
            "fanwire_members",
            "Members of rooms; a connection is one in each of its rooms.",
            |m| m.members.value(),
        )?;
        self.per_shard(
            "fanwire_mailbox_depth",
            "Messages of shards and of the admin interface that a shard has not taken in. It is 0 \
             nearly always; staying above it means that the shard is behind.",
            |m| m.mailbox_depth.value(),
        )?;
        self.per_shard(
            "fanwire_sweep_lag_bytes",
            "How far the shard's slowest sweep is behind the newest message of its room.",
            |m| m.sweep_lag.value(),
        )?;
        self.per_shard_total(
            "fanwire_ring_overflows",
            "Times that the completion queue of io_uring was full; nothing is lost, but slower.",
            |m| m.ring_overflows.value(),
        )?;
        self.per_shard(
            "fanwire_receive_buffers",
            "Receive buffers of 16 KiB that the shard has made.",
            |m| m.receive_buffers.value(),
        )?;
        self.per_shard(
            "fanwire_segments",
            "Segments of 64 KiB for encoded frames that are filled and wait to be used again.",
            |m| m.segments.value(),
        )?;
        self.per_shard(
            "fanwire_partial_bytes",
            "Memory for messages of which only a part has arrived; bounded by partial_bytes_max.",
            |m| m.partial_bytes.value(),
        )?;
        self.histogram(
            "fanwire_tick_seconds",
            "Length of the ticks of all shards, sends included, waiting not.",
            |m| &m.tick_time,
        )
    }

    fn process(&mut self, api: &Api) -> fmt::Result {
        let busy = api.monitor.shards().iter().enumerate().map(|(shard, it)| {
            let busy = it.clock.map_or(0.0, |clock| clock.read().as_secs_f64());
            (vec![("shard", shard.to_string()), ("cpu", it.cpu.to_string())], busy)
        });
        let busy: Vec<_> = busy.collect();
        self.counters(
            "fanwire_shard_cpu_seconds",
            "CPU time of each shard; its rate is the load, 1 being a whole CPU.",
            busy,
        )?;
        self.gauge(
            "fanwire_ready",
            "Whether GET /ready says that the server takes traffic: 1, or 0.",
            i64::from(api.obstacle().is_none()),
        )?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.gauges(
            "fanwire_build_info",
            "Which build this is; always 1.",
            vec![(vec![("version", version)], 1)],
        )?;
        self.gauge(
            "process_resident_memory_bytes",
            "Resident memory of the process; that of the kernel for sockets is not in it.",
            api.monitor.resident_bytes() as i64,
        )?;
        self.gauge(
            "process_start_time_seconds",
            "When the server started, as seconds since 1970.",
            api.monitor.started_at(),
        )
    }

    fn sum(&self, count: impl Fn(&ShardMetrics) -> u64) -> u64 {
        self.shards.iter().map(|metrics| count(metrics)).sum()
    }

    fn total(&mut self, name: &str, help: &str, of: fn(&ShardMetrics) -> &Counter) -> fmt::Result {
        let count = self.sum(|metrics| of(metrics).value());
        self.counter(name, help, count)
    }

    fn counter(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let mut out = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        out.encode_counter::<NoLabelSet, _, f64>(&count, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let mut out = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        out.encode_gauge(&value)
    }

    fn per_shard_total(
        &mut self,
        name: &str,
        help: &str,
        of: fn(&ShardMetrics) -> u64,
    ) -> fmt::Result {
        self.counters(name, help, self.by_shard(of))
    }

    fn per_shard(&mut self, name: &str, help: &str, of: fn(&ShardMetrics) -> u64) -> fmt::Result {
        let samples = self.by_shard(of).into_iter().map(|(labels, it)| (labels, it as i64));
        self.gauges(name, help, samples.collect())
    }

    fn by_shard(&self, of: fn(&ShardMetrics) -> u64) -> Vec<(Labels, u64)> {
        let shards = self.shards.iter().enumerate();
        shards.map(|(shard, it)| (vec![("shard", shard.to_string())], of(it))).collect()
    }

    fn counters<N: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: Vec<(Labels, N)>,
    ) -> fmt::Result {
        let mut out = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in samples {
            out.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        Ok(())
    }

    fn gauges(&mut self, name: &str, help: &str, samples: Vec<(Labels, i64)>) -> fmt::Result {
        let mut out = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            out.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        of: fn(&ShardMetrics) -> &Histogram,
    ) -> fmt::Result {
        let mut counts = Counts::default();
        self.shards.iter().for_each(|metrics| counts.merge(&of(metrics).counts()));
        let total = counts.total();
        let mut below = 0;
        let bounds = BOUNDS_LOG2.map(|log2| ((1_u64 << log2) as f64 / 1e9, log2));
        let mut buckets = Vec::new();
        for ((bound, _), count) in bounds.zip(counts.at_most_log2(BOUNDS_LOG2)) {
            buckets.push((bound, count - below));
            below = count;
        }
        buckets.push((f64::INFINITY, total - below));
        let mut out = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        out.encode_histogram::<NoLabelSet>(counts.sum_seconds(), total, &buckets, None)
    }
}

fn policy(name: &str) -> Labels {
    vec![("policy", name.to_owned())]
}

/// The upper bounds of the buckets of histograms, 2^n ns: from 16 us to 34 s, each twice the last.
const BOUNDS_LOG2: std::ops::RangeInclusive<u32> = 14..=35;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_families_of_counters_like_their_samples() {
        let openmetrics = "# HELP a_b What it is.\n# TYPE a_b counter\na_b_total{c=\"d\"} 1\n\
             # HELP e Not a counter\n# TYPE e gauge\ne 2\n# EOF\n";
        let text = "# HELP a_b_total What it is.\n# TYPE a_b_total counter\na_b_total{c=\"d\"} 1\n\
             # HELP e Not a counter\n# TYPE e gauge\ne 2\n";
        assert_eq!(to_text(openmetrics), text);
    }

    #[test]
    fn openmetrics_is_for_who_asks_for_it() {
        for (accept, asks) in [
            ("application/openmetrics-text", true),
            (" Application/OpenMetrics-Text;version=1.0.0; Q = 0.5", true),
            ("application/openmetrics-text; q=0", false),
            ("application/openmetrics-text; q=high", false),
            ("text/plain;version=0.0.4", false),
            ("*/*", false),
            ("", false),
            ("application/*", true),
            ("application/*, */*", false),
            // What Prometheus sends.
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;\
                 version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                true,
            ),
            ("text/plain, application/openmetrics-text", true),
            ("text/plain;q=1, application/openmetrics-text;q=0.1", false),
            ("text/*;q=0.2, application/openmetrics-text;q=0.1", false),
            ("*/*;q=0.2, application/openmetrics-text;q=0.1", false),
            ("text/plain;q=0, */*, application/openmetrics-text;q=0.1", true),
        ] {
            assert_eq!(prefers_openmetrics(accept), asks, "{accept:?}");
        }
    }
}
