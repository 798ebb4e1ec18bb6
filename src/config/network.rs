//! Whom to believe about where a connection comes from: networks of proxies.

use std::net::IpAddr;

use clap::ValueEnum;
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::value::ValueError;

/// One entry of `trusted_proxies`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustedProxy {
    /// Nobody.
    Off,
    /// Whoever connects from this network.
    Network(IpNet),
}

impl Serialize for TrustedProxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TrustedProxy::Off => serializer.serialize_str("off"),
            TrustedProxy::Network(network) => serializer.collect_str(network),
        }
    }
}

/// A network, an address, or "off".
pub(super) fn trusted_proxy(text: &str, _accepted: &str) -> Result<TrustedProxy, ValueError> {
    if text == "off" {
        return Ok(TrustedProxy::Off);
    }
    let network = match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>().map(|network| network.trunc()),
    };
    network.map(TrustedProxy::Network).map_err(|_| ValueError::NotANetwork)
}

/// The networks of `trusted_proxies`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Those of these entries.
    #[must_use]
    pub fn new(entries: &[TrustedProxy]) -> Self {
        let network = |entry: &TrustedProxy| match entry {
            TrustedProxy::Off => None,
            TrustedProxy::Network(network) => Some(*network),
        };
        Self(entries.iter().filter_map(network).collect())
    }

    /// Whether nobody is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `address` is a trusted proxy's. An IPv4 address is to be given as one, not as
    /// `::ffff:a.b.c.d`. Cost: linear in the networks.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Whether trusted proxies say with a PROXY header whom they connect for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// They do not.
    Off,
    /// They may.
    Optional,
    /// They must.
    Required,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_read_print_and_contain() {
        for (text, printed, inside, outside) in [
            ("10.0.0.0/8", "10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.1.2.3/8", "10.0.0.0/8", "10.0.0.0", "9.255.255.255"),
            ("192.0.2.7", "192.0.2.7/32", "192.0.2.7", "192.0.2.8"),
            ("2001:db8::/32", "2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1/128", "::1", "::2"),
            ("0.0.0.0/0", "0.0.0.0/0", "198.51.100.7", "::1"),
        ] {
            let read = trusted_proxy(text, "").unwrap();
            assert_eq!(toml::Value::try_from(read).unwrap().as_str(), Some(printed));
            let trusted = TrustedProxies::new(&[TrustedProxy::Off, read]);
            assert!(trusted.trusts(inside.parse().unwrap()), "{text} {inside}");
            assert!(!trusted.trusts(outside.parse().unwrap()), "{text} {outside}");
        }
        assert!(TrustedProxies::new(&[TrustedProxy::Off]).is_empty());
    }

    #[test]
    fn wrong_networks() {
        for text in ["", "10.0.0.0/33", "10.0.0/8", "proxy.example", "::/129", "10.0.0.1:80"] {
            assert_eq!(trusted_proxy(text, ""), Err(ValueError::NotANetwork), "{text:?}");
        }
    }
}
