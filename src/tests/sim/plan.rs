//! What kind of world a seed makes: how many of whom, how unkind, with which limits.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::net::{Net, UNIX_TIME};
use super::peer::{PROXIES, ROOM_NAMES, pick};
use crate::auth::{Algorithm, Expected, Key, Verifier};
use crate::config::{
    Heartbeats, Limits, MembersMax, MembersRule, Origins, Policies, Policy, ProxyProtocol, Rate,
    RoomAlphabet, RoomRule, SlowConsumer, TrustedProxies, TrustedProxy,
};
use crate::pattern::Pattern;

/// Whose token every peer has, where there are tokens.
pub(super) const SIM_USER: &str = "sim";

/// What kind of world the seed makes.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) shards: usize,
    pub(super) rooms: usize,
    pub(super) message_max: usize,
    pub(super) rooms_per_connection_max: usize,
    pub(super) handshake_timeout: Duration,
    pub(super) close_timeout: Duration,
    /// How many peers there are in all, and at once.
    pub(super) peers: usize,
    pub(super) peers_at_once: usize,
    /// They are so many that the bounds of ticks, which are small in tests, hold them up.
    pub(super) crowd: bool,
    /// How likely the next one comes in a step.
    pub(super) arrivals: f64,
    /// How long the first act lasts: so many steps, or so long.
    pub(super) steps: u64,
    pub(super) lasts: Option<Duration>,
    pub(super) step_max: Duration,
    /// Share of peers that read at once, always.
    pub(super) eager: f64,
    /// How readily peers talk, leave, stall for long, and publish many at once.
    pub(super) talk: f64,
    pub(super) churn: f64,
    pub(super) long_stalls: f64,
    pub(super) bursts: f64,
    /// In a quiet world somebody talks once in about so long, however many steps that is.
    pub(super) pace: Option<Duration>,
    /// Shards stall; the first one has its turns late; everything stops for a while.
    pub(super) shard_stalls: f64,
    pub(super) slow_shard: Duration,
    pub(super) jumps: f64,
    /// Now and then somebody sets the host's clock.
    pub(super) clock_sets: f64,
    /// The high-water mark is beyond everything that is ever published.
    pub(super) roomy: bool,
    /// There may be no place for a connection, a room, an incomplete message.
    pub(super) crowded: bool,
    pub(super) rooms_scarce: bool,
    pub(super) partial_scarce: bool,
    /// Vanished peers are looked for; some vanish.
    pub(super) heartbeats: Option<Heartbeats>,
    /// What every peer shows, where there is authentication: user [`SIM_USER`], all rooms.
    pub(super) token: Option<String>,
    /// Rooms whose slow consumers have a policy of their own.
    pub(super) rules: Vec<RoomRule>,
    /// Peers send direct messages to each other, and never change their names.
    pub(super) directs: bool,
    /// Connections closed per second of a drain.
    pub(super) drain_rate: Option<u32>,
    /// Now and then their marks and ages change.
    pub(super) reloads: bool,
    /// An address may have few connections, and rooms few members; some addresses are proxies'.
    pub(super) addresses_scarce: bool,
    pub(super) seats_scarce: bool,
    pub(super) proxies: bool,
    pub(super) drains: bool,
    /// Somebody publishes from outside.
    pub(super) backend: bool,
    /// The drain has begun.
    pub(super) draining: bool,
    /// When whoever is left may be cut.
    pub(super) drain_until: Duration,
    /// How long before that it may have stopped waiting for shards that are behind.
    pub(super) drain_patience: Duration,
    /// The first shard has ended.
    pub(super) ended: bool,
}

impl Plan {
    /// What the seed makes of a loud world; in one of its own fifty it is a crowd.
    pub(super) fn new(seed: u64, net: &mut Net) -> Self {
        let roomy = net.chance(0.4);
        let crowd = seed % 50 == 49;
        let peers_at_once =
            if crowd { pick(net, &[1000, 3000]) } else { pick(net, &[3, 8, 20, 40]) };
        let mut plan = Self {
            shards: pick(net, &[1, 2, 2, 3, 4]),
            rooms: pick(net, &[1, 2, 4]),
            message_max: pick(net, &[300, 1000, 4000]),
            rooms_per_connection_max: pick(net, &[1, 2, 4]),
            handshake_timeout: Duration::from_secs(1),
            close_timeout: Duration::from_millis(pick(net, &[400, 1000])),
            peers: if crowd { peers_at_once } else { peers_at_once * pick(net, &[1, 2, 4]) },
            peers_at_once,
            crowd,
            arrivals: if crowd { 0.5 } else { 0.05 },
            steps: if crowd { 40_000 } else { pick(net, &[4_000, 8_000, 16_000]) },
            lasts: None,
            step_max: Duration::from_micros(pick(net, &[1, 20, 200])),
            eager: pick(net, &[0.0, 0.5, 1.0]),
            talk: if crowd { 0.02 } else { pick(net, &[0.02, 0.1, 0.3]) },
            churn: pick(net, &[0.0, 0.01, 0.05]),
            long_stalls: pick(net, &[0.0, 0.3]),
            bursts: if crowd { 0.0 } else { pick(net, &[0.0, 0.3]) },
            pace: None,
            shard_stalls: pick(net, &[0.0, 0.001, 0.01]),
            slow_shard: Duration::from_millis(if crowd { 0 } else { pick(net, &[0, 0, 0, 2, 20]) }),
            jumps: pick(net, &[0.0, 0.0, 0.0, 0.0005]),
            clock_sets: pick(net, &[0.0, 0.001]),
            roomy,
            crowded: net.chance(0.2),
            rooms_scarce: net.chance(0.2),
            partial_scarce: net.chance(0.15),
            heartbeats: None,
            token: net.chance(0.15).then(sign),
            rules: Vec::new(),
            directs: net.chance(0.2),
            drain_rate: pick(net, &[None, Some(10), Some(60), Some(1000)]).filter(|_| !crowd),
            reloads: false,
            addresses_scarce: !crowd && net.chance(0.25),
            seats_scarce: net.chance(0.2),
            proxies: net.chance(0.5),
            drains: net.chance(0.2),
            draining: false,
            drain_until: Duration::MAX,
            drain_patience: Duration::ZERO,
            ended: false,
            backend: net.chance(0.25),
        };
        plan.proxies &= plan.addresses_scarce;
        if net.chance(0.25) {
            plan.heartbeats = Some(Heartbeats {
                ping_interval: Some(Duration::from_millis(pick(net, &[400, 1000]))),
                pong_timeout: Duration::from_millis(pick(net, &[100, 600, 1000])),
            });
        }
        if !plan.roomy && net.chance(0.4) {
            plan.draw_rules(&mut net.rng);
            plan.reloads = net.chance(0.3);
        }
        plan
    }

    /// A quiet world: `peers` peers stay for as long as it `lasts`, most of them have nothing to
    /// say, and heartbeats find those that vanish.
    pub(super) fn quiet(peers: usize, lasts: Duration, net: &mut Net) -> Self {
        Self {
            shards: 2,
            rooms: ROOM_NAMES.len(),
            message_max: 1000,
            rooms_per_connection_max: 2,
            peers: 4 * peers,
            peers_at_once: peers,
            arrivals: 1.0,
            lasts: Some(lasts),
            step_max: Duration::from_micros(20),
            eager: 0.5,
            churn: 0.01,
            long_stalls: 0.0,
            bursts: 0.0,
            pace: Some(Duration::from_secs(5)),
            shard_stalls: 0.0,
            slow_shard: Duration::ZERO,
            jumps: 0.0,
            clock_sets: 0.0,
            roomy: true,
            crowd: false,
            crowded: false,
            rooms_scarce: false,
            partial_scarce: false,
            heartbeats: Some(Heartbeats {
                ping_interval: Some(Duration::from_secs(40)),
                pong_timeout: Duration::from_secs(10),
            }),
            token: None,
            rules: Vec::new(),
            directs: false,
            drain_rate: None,
            reloads: false,
            addresses_scarce: false,
            seats_scarce: false,
            proxies: false,
            drains: false,
            backend: false,
            ..Self::new(0, net)
        }
    }

    /// Whether shards may have their turns late, in whatever way.
    pub(super) fn has_slow_shards(&self) -> bool {
        self.shard_stalls > 0.0 || self.jumps > 0.0 || self.is_busy()
    }

    /// Whether there may be more to do than there is time: then timeouts may strike.
    pub(super) fn is_busy(&self) -> bool {
        !self.slow_shard.is_zero() || self.crowd
    }

    /// The name of a peer; where there are direct messages, of two.
    pub(super) fn peer_name(&self, number: usize) -> String {
        let number = if self.directs { number / 2 } else { number };
        format!("peer \"{number}\"")
    }

    /// Whether whoever is left may be cut.
    pub(super) fn drain_is_over(&self, now: Duration) -> bool {
        now >= self.drain_until
    }

    /// What a member that takes a largest message may be behind by when the next one comes.
    pub(super) fn mark_min(&self) -> u64 {
        2 * self.message_max as u64 + 600
    }

    /// The largest mark of any room.
    pub(super) fn mark_max(&self, limits: &Limits) -> u64 {
        ROOM_NAMES.iter().map(|name| limits.policies.of(name).high_water_mark).max().unwrap_or(0)
    }

    /// A rule for most of the rooms. In some worlds nobody goes, so that all that is skipped can be
    /// accounted for.
    fn draw_rules(&mut self, rng: &mut StdRng) {
        if rng.random_bool(0.3) {
            (self.churn, self.long_stalls, self.drains) = (0.0, 0.0, false);
        }
        for name in ROOM_NAMES {
            let slow_consumer = match rng.random_range(0..7) {
                0 => continue,
                1 => SlowConsumer::Disconnect,
                2..5 => SlowConsumer::SkipToNewest,
                _ => SlowConsumer::DropOldest,
            };
            let skips = slow_consumer != SlowConsumer::Disconnect;
            // Also less than a message: the newest is kept.
            let least = if skips && rng.random_bool(0.5) { 200 } else { self.mark_min() };
            let policy = Policy {
                slow_consumer,
                high_water_mark: least * [1, 4, 16][rng.random_range(0..3)],
                age_max: [None, None, Some(20), Some(300)][rng.random_range(0..4)]
                    .map(Duration::from_millis),
            };
            let pattern = Pattern::new(name).expect("a room has a name");
            self.rules.push(RoomRule::new(pattern, policy));
        }
    }

    /// What there is few of for each address and room, and who is a proxy.
    fn draw_limits(&self, limits: &mut Limits, rng: &mut StdRng) {
        if self.addresses_scarce {
            limits.connections_per_address_max = Some(rng.random_range(1..5));
            let rate = Rate { per_second: 10, burst: rng.random_range(1..5) };
            limits.handshakes_per_second_per_address = rng.random_bool(0.3).then_some(rate);
            if self.proxies {
                limits.trusted_proxies = TrustedProxies::new(&[TrustedProxy::Network(
                    PROXIES.parse().expect("it is a network"),
                )]);
                limits.proxy_protocol = ProxyProtocol::Optional;
            }
        }
        if self.seats_scarce {
            for name in ROOM_NAMES {
                if rng.random_bool(0.3) {
                    continue;
                }
                let pattern = Pattern::new(name).expect("a name is a pattern");
                let members_max = rng.random_range(1..5);
                limits.members_per_room_max.0.push(MembersRule { pattern, members_max });
            }
        }
    }

    /// Whether a join may find no place.
    pub(super) fn joins_may_fail(&self) -> bool {
        self.rooms_scarce || self.seats_scarce
    }

    /// Whether slow consumers are disconnected in some room.
    pub(super) fn disconnects(&self) -> bool {
        let skips = |rule: &RoomRule| rule.policy.slow_consumer != SlowConsumer::Disconnect;
        self.rules.iter().filter(|rule| skips(rule)).count() < ROOM_NAMES.len()
    }

    /// What the server is told to keep to.
    pub(super) fn limits(&self, net: &mut Net) -> Limits {
        let mut limits = self.usual_limits(net);
        self.draw_limits(&mut limits, &mut net.rng);
        limits
    }

    fn usual_limits(&self, net: &mut Net) -> Limits {
        let high_water_mark = self.mark_min();
        let scarce = |scarce: bool, few: usize| if scarce { few } else { 1_000_000 };
        Limits {
            verifier: self.token.as_ref().map(|_| Arc::new(verifier())),
            origins: Origins::default(),
            ready_rss_max: None,
            handshake_timeout: self.handshake_timeout,
            close_timeout: self.close_timeout,
            message_timeout: Duration::from_secs(3600),
            send_timeout: Duration::from_millis(pick(net, &[500, 1500])),
            drain_rate: self.drain_rate,
            drain_timeout: Duration::from_secs(20),
            heartbeats: self.heartbeats.unwrap_or(NO_HEARTBEATS),
            connections_per_address_max: None,
            handshakes_per_second: None,
            handshakes_per_second_per_address: None,
            trusted_proxies: TrustedProxies::default(),
            proxy_protocol: ProxyProtocol::Off,
            // Listeners pause often.
            handshakes_max: scarce(net.chance(0.25), 3),
            handshake_bytes_max: 2048,
            target_bytes_max: 256,
            ws_message_bytes_max: self.message_max,
            raw_message_bytes_max: self.message_max,
            echo_message_bytes_max: self.message_max,
            frame_bytes_max: usize::MAX,
            messages_per_second: None,
            bytes_per_second: None,
            partial_bytes_max: scarce(self.partial_scarce, 2 * self.message_max),
            rooms_per_connection_max: self.rooms_per_connection_max,
            rooms_max: scarce(self.rooms_scarce, 2),
            members_per_room_max: MembersMax::default(),
            room_id_alphabet: RoomAlphabet::Any,
            room_id_bytes_max: 64,
            user_id_bytes_max: 64,
            policies: Policies {
                rules: self.rules.clone(),
                default: Policy {
                    slow_consumer: SlowConsumer::Disconnect,
                    high_water_mark: if self.roomy {
                        1 << 40
                    } else {
                        high_water_mark * pick(net, &[1, 4, 16])
                    },
                    age_max: None,
                },
            },
            mailbox_len_max: pick(net, &[1, 2, 4, 16]),
            publish_bytes_max: 1 << 20,
            publish_queue_len_max: 8,
            echo: true,
            connections_max: scarce(self.crowded, pick(net, &[4, 16])),
            connections_per_shard_max: scarce(self.crowded, pick(net, &[2, 8])),
        }
    }

    /// How unkind the network is to a quiet world: a little, and so that it is known by when who
    /// has vanished must be found.
    pub(super) fn set_few_faults(net: &mut Net) {
        net.faults.accept_fails = 0.02;
        net.faults.accept_ends = 0.1;
        net.faults.poll_delay_max = Duration::from_millis(1);
    }

    /// How unkind the network is to it.
    pub(super) fn set_faults(&self, net: &mut Net, limits: &Limits) {
        net.faults.short_send = pick(net, &[0.0, 0.05, 0.5]);
        net.faults.spurious = pick(net, &[0.0, 0.0, 0.01]);
        net.faults.transient = pick(net, &[0.0, 0.02]);
        net.faults.accept_fails = pick(net, &[0.0, 0.1]);
        net.faults.accept_ends = pick(net, &[0.0, 0.2]);
        net.faults.poll_delay_max = Duration::from_micros(pick(net, &[0, 100, 5000]));
        net.faults.completions_max = pick(net, &[1, 4, 16, usize::MAX, usize::MAX, usize::MAX]);
        net.faults.receives_max = pick(net, &[1, 3, 64]);
        net.faults.receive_bytes_max = pick(net, &[16, 256, 4096, 16_384]);
        if self.crowded {
            net.faults.descriptors_max = limits.connections_per_shard_max + pick(net, &[0, 2, 100]);
        }
    }
}

const SECRET: &[u8] = b"what nobody outside of the simulation knows";

/// How long a token is good from the beginning of the world, in seconds.
pub(super) const TOKEN_TIME: u64 = 86_400;

/// A token that is good for a day and all rooms.
fn sign() -> String {
    let claims = serde_json::json!({
        "sub": SIM_USER, "exp": UNIX_TIME + TOKEN_TIME,
        "rooms": [{"pattern": "*", "join": true, "publish": true}], "direct": true,
    });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("it can be signed")
}

/// Two keys, so that a token takes as many signatures as are checked in one tick here.
fn verifier() -> Verifier {
    let key = |secret: &[u8]| Key::read(None, Algorithm::Hs256, secret).expect("long enough");
    Verifier::new(vec![key(&[b'x'; 32]), key(SECRET)], Expected::default())
}

/// Nobody is pinged.
pub(super) const NO_HEARTBEATS: Heartbeats =
    Heartbeats { ping_interval: None, pong_timeout: Duration::from_secs(1) };
