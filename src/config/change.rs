//! What changes when the configuration is read again while the server runs.
//!
//! A setting is declared *live* where it is declared: it is in the group [`LIVE`]. Those change at
//! once; what else differs waits for a restart.

use std::fmt;

use super::layers::settings_command;
use super::settings::{LIVE, Settings};

/// A setting that has another value than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which one.
    pub key: String,
    /// As `fanwire config` prints it.
    pub old: String,
    /// As `fanwire config` prints it.
    pub new: String,
    /// Whether it can change without a restart.
    pub is_live: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.key, self.old, self.new)
    }
}

impl Settings {
    /// What is different in `new`, in the order of declaration.
    pub fn changes(&self, new: &Settings) -> Vec<Change> {
        let (old, new) = (self.to_table(), new.to_table());
        let mut changes = Vec::new();
        for key in settings_command().get_arguments().map(|arg| arg.get_id().as_str()) {
            if old[key] != new[key] {
                let [old, new] = [&old[key], &new[key]].map(|value| match value {
                    toml::Value::String(text) => text.clone(),
                    value => value.to_string(),
                });
                changes.push(Change { key: key.to_owned(), old, new, is_live: is_live(key) });
            }
        }
        changes
    }

    /// These settings with the live ones of `new`.
    #[must_use]
    pub fn with_live(&self, new: &Settings) -> Settings {
        Settings {
            ping_interval: new.ping_interval,
            pong_timeout: new.pong_timeout,
            log_level: new.log_level,
            ..self.clone()
        }
    }

    /// Every setting by its key.
    pub(super) fn to_table(&self) -> toml::Table {
        toml::Table::try_from(self).expect("settings are plain TOML values")
    }
}

/// Whether the setting `key` can change without a restart.
pub(super) fn is_live(key: &str) -> bool {
    let mut command = settings_command();
    command.build();
    let mut live = command.get_groups().filter(|group| group.get_id() == LIVE);
    live.any(|group| group.get_args().any(|id| id == key))
}

#[cfg(test)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    #[test]
    fn what_is_live_changes_at_once_and_nothing_else() {
        let old = settings(&[]).unwrap();
        let flags = "--listen=[::1]:1 --admin=off --echo --shards=3 --cpus=0 --mailbox-len-max=17 \
            --publish-queue-len-max=17 --publish-bytes-max=2KiB \
            --connections-max=9 --handshakes-max=9 --handshake-bytes-max=9KiB \
            --target-bytes-max=3KiB --ws-message-bytes-max=2KiB --raw-message-bytes-max=2KiB \
            --echo-message-bytes-max=2KiB --partial-bytes-max=64MiB --high-water-mark=1MiB \
            --room-policy=*=drop-oldest/1MiB \
            --rooms-per-connection-max=9 --rooms-max=9 --room-id-bytes-max=9B \
            --user-id-bytes-max=9B --handshake-timeout=9s --close-timeout=9s \
            --message-timeout=9s --send-timeout=9s --ping-interval=off --pong-timeout=9s \
            --drain-timeout=9s --log-format=json --log-level=warn";
        let new = settings(&flags.split_whitespace().collect::<Vec<_>>()).unwrap();
        let changes = old.changes(&new);
        assert_eq!(changes.len(), settings_command().get_arguments().count(), "{changes:?}");
        let (live, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(|c| c.is_live);
        assert_eq!(old.changes(&old.with_live(&new)), live);
        assert_eq!(old.with_live(&new).changes(&new), rest);
        let texts: Vec<_> = live.iter().map(ToString::to_string).collect();
        let expected =
            ["ping_interval 1m -> off", "pong_timeout 20s -> 9s", "log_level info -> warn"];
        assert_eq!(texts, expected);
    }

    #[test]
    fn nothing_changes_without_a_change() {
        let settings = settings(&["--ping-interval=90s"]).unwrap();
        assert_eq!(settings.changes(&settings), []);
    }
}
