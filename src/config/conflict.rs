//! How settings relate to each other; each one's own range is checked when it is read.

use std::net::SocketAddr;

use super::keys::AuthKey;
use super::network::{ProxyProtocol, TrustedProxies};
use super::policy::RoomRule;
use super::rate::RateLimit;
use super::settings::Settings;
use super::value::{Size, Switch};

impl Settings {
    /// Checks how the settings relate to each other; each one's own range is checked when it is
    /// read.
    ///
    /// # Errors
    /// The first [`Conflict`] found.
    pub fn check(&self) -> Result<(), Conflict> {
        for (i, address) in self.listen.iter().enumerate() {
            if address.port() != 0 && self.listen[..i].contains(address) {
                return Err(Conflict::ListenTwice(*address));
            }
        }
        if let Switch::On(admin) = self.admin
            && admin.port() != 0
            && self.listen.contains(&admin)
        {
            return Err(Conflict::AdminListens(admin));
        }
        if let Some(address) = self.open_to_all().filter(|_| !self.insecure) {
            return Err(Conflict::Unauthenticated(address));
        }
        if self.authenticates() && self.auth_keys.contains(&AuthKey::Off) {
            return Err(Conflict::KeysAndOff);
        }
        if let Switch::On(admin) = self.admin
            && !admin.ip().to_canonical().is_loopback()
            && self.admin_key_file == Switch::Off
            && !self.insecure
        {
            return Err(Conflict::AdminOpen(admin));
        }
        if self.target_bytes_max > self.handshake_bytes_max {
            return Err(Conflict::TargetBeyondHandshake {
                target_bytes_max: self.target_bytes_max,
                handshake_bytes_max: self.handshake_bytes_max,
            });
        }
        if self.proxy_protocol != ProxyProtocol::Off
            && TrustedProxies::new(&self.trusted_proxies).is_empty()
        {
            return Err(Conflict::NoProxyTrusted);
        }
        let message_bytes_max = self.message_bytes_max();
        if let RateLimit::At { burst: Some(burst), .. } = self.bytes_per_second
            && u64::from(burst) < self.longest_message_on_the_wire()
        {
            return Err(Conflict::BurstBelowMessage { burst, message_bytes_max });
        }
        let rules: Vec<&RoomRule> = self.rules().collect();
        for (i, rule) in rules.iter().enumerate() {
            if let Some(before) = rules[..i].iter().find(|before| before.covers(rule)) {
                let (rule, before) = (Box::new((*rule).clone()), Box::new((*before).clone()));
                return Err(Conflict::RuleWithoutRooms { rule, before });
            }
        }
        // A member that has just begun to take one largest message must not be over the mark when
        // the next one is published. (Members that are not disconnected keep the newest one.)
        for (key, message_bytes_max) in [
            ("ws_message_bytes_max", self.ws_message_bytes_max),
            ("raw_message_bytes_max", self.raw_message_bytes_max),
        ] {
            let least = 2 * message_bytes_max.bytes();
            if self.high_water_mark.bytes() < least {
                return Err(Conflict::HighWaterMark {
                    high_water_mark: self.high_water_mark,
                    key,
                    message_bytes_max,
                });
            }
            if let Some(rule) = rules.iter().find(|rule| rule.disconnects_below(least as u64)) {
                let rule = Box::new((*rule).clone());
                return Err(Conflict::RuleMark { rule, key, message_bytes_max });
            }
        }
        Ok(())
    }
}

/// Settings that are each in range and do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// One address to listen on was given twice.
    #[error("listen names {0} twice; name it once")]
    ListenTwice(SocketAddr),
    /// The admin interface was put on an address that serves clients.
    #[error(
        "admin = {0} is also in listen; give it a port of its own, or turn it off with admin = off"
    )]
    AdminListens(SocketAddr),
    /// Everybody could join every room.
    #[error(
        "listen = {0} is not a loopback address, and without auth_keys whoever reaches it could join every room and publish to it; give auth_keys, listen on 127.0.0.1 behind a proxy that authenticates, or say --insecure"
    )]
    Unauthenticated(SocketAddr),
    /// Half a decision.
    #[error("auth_keys has off beside keys; take off out, or the keys")]
    KeysAndOff,
    /// Whoever reaches the host could use the admin interface.
    #[error(
        "admin = {0} is not a loopback address, and whoever reaches it could publish and disconnect: give it keys with admin_key_file, a loopback address, or say --insecure where the network keeps others out"
    )]
    AdminOpen(SocketAddr),
    /// A target of the allowed length could not arrive.
    #[error(
        "target_bytes_max = {target_bytes_max} must be at most handshake_bytes_max = {handshake_bytes_max}, of which it is a part"
    )]
    TargetBeyondHandshake {
        /// As configured.
        target_bytes_max: Size,
        /// As configured.
        handshake_bytes_max: Size,
    },
    /// Headers were to be read, but of nobody.
    #[error(
        "proxy_protocol needs trusted_proxies, the networks whose PROXY headers are to be believed; name them, or set proxy_protocol = off"
    )]
    NoProxyTrusted,
    /// A message that is allowed would be more bytes than are.
    #[error(
        "bytes_per_second has a burst of {burst}, less than a longest message of {message_bytes_max} and its header; raise the burst, or leave it out"
    )]
    BurstBelowMessage {
        /// As configured.
        burst: Size,
        /// The largest of those of the endpoints.
        message_bytes_max: Size,
    },
    /// One message could make every member a slow consumer.
    #[error(
        "high_water_mark = {high_water_mark} must be at least twice {key} = {message_bytes_max}"
    )]
    HighWaterMark {
        /// As configured.
        high_water_mark: Size,
        /// Whose maximum it is.
        key: &'static str,
        /// As configured.
        message_bytes_max: Size,
    },
    /// The same, in the rooms of a rule.
    #[error(
        "room_policy {rule} disconnects, so its high-water mark must be at least twice {key} = {message_bytes_max}; raise it, or let the rule skip messages"
    )]
    RuleMark {
        /// As configured.
        rule: Box<RoomRule>,
        /// Whose maximum it is.
        key: &'static str,
        /// As configured.
        message_bytes_max: Size,
    },
    /// A rule would never count.
    #[error(
        "room_policy {rule} would never count: {before} stands before it and matches all its rooms; put it first, or take it out"
    )]
    RuleWithoutRooms {
        /// As configured.
        rule: Box<RoomRule>,
        /// The one that counts.
        before: Box<RoomRule>,
    },
}

impl Conflict {
    /// The keys that do not fit together; to change any of them may solve it.
    pub fn keys(&self) -> &'static [&'static str] {
        match self {
            Conflict::ListenTwice(_) => &["listen"],
            Conflict::AdminListens(_) => &["admin", "listen"],
            Conflict::Unauthenticated(_) => &["listen", "auth_keys", "insecure"],
            Conflict::KeysAndOff => &["auth_keys"],
            Conflict::AdminOpen(_) => &["admin", "admin_key_file", "insecure"],
            Conflict::TargetBeyondHandshake { .. } => &["target_bytes_max", "handshake_bytes_max"],
            Conflict::NoProxyTrusted => &["proxy_protocol", "trusted_proxies"],
            Conflict::BurstBelowMessage { .. } => &["bytes_per_second"],
            Conflict::HighWaterMark { key: "raw_message_bytes_max", .. } => {
                &["high_water_mark", "raw_message_bytes_max"]
            }
            Conflict::HighWaterMark { .. } => &["high_water_mark", "ws_message_bytes_max"],
            Conflict::RuleMark { key: "raw_message_bytes_max", .. } => {
                &["room_policy", "raw_message_bytes_max"]
            }
            Conflict::RuleMark { .. } => &["room_policy", "ws_message_bytes_max"],
            Conflict::RuleWithoutRooms { .. } => &["room_policy"],
        }
    }
}
