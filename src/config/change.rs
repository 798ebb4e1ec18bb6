//! What changes when the configuration is read again while the server runs.
//!
//! A setting is declared *live* where it is declared: it is in the group [`LIVE`], and that is all
//! there is to do. Those change at once; what else differs waits for a restart.

use std::fmt;

use super::layers::{ConfigError, Loaded, settings_command};
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
        let same_keys = self.has_keys_of(new);
        let (old, new) = (self.to_table(), new.to_table());
        let mut changes = Vec::new();
        for key in settings_command().get_arguments().map(|arg| arg.get_id().as_str()) {
            if old[key] != new[key] {
                let [old, new] = [&old[key], &new[key]].map(|value| match value {
                    toml::Value::String(text) => text.clone(),
                    value => value.to_string(),
                });
                changes.push(Change { key: key.to_owned(), old, new, is_live: is_live(key) });
            } else if key == "auth_keys" && !same_keys {
                let [old, new] = ["keys", "other keys in the same files"].map(str::to_owned);
                changes.push(Change { key: key.to_owned(), old, new, is_live: true });
            }
        }
        changes
    }

    /// Whether the files of `auth_keys` hold the same keys.
    fn has_keys_of(&self, other: &Settings) -> bool {
        match (&self.verifier, &other.verifier) {
            (Some(own), Some(theirs)) => own.keys() == theirs.keys(),
            (own, theirs) => own.is_none() == theirs.is_none(),
        }
    }

    /// Every setting by its key.
    pub(super) fn to_table(&self) -> toml::Table {
        toml::Table::try_from(self).expect("settings are plain TOML values")
    }
}

impl Loaded {
    /// This configuration with the live settings of `new`.
    ///
    /// # Errors
    /// [`ConfigError::Conflict`] when those do not fit the settings that wait for a restart.
    pub fn with_live(&self, new: &Loaded) -> Result<Loaded, ConfigError> {
        let layer = self.layer.with_those(is_live, &new.layer);
        let mut settings = layer.settings()?;
        settings.check().map_err(|conflict| layer.conflict(conflict))?;
        // All that they are made of is live, and has just been read.
        settings.verifier = new.settings.verifier.clone();
        Ok(Loaded { action: self.action, settings, layer, warnings: new.warnings.clone() })
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
    use super::super::tests::{loaded, settings};
    use super::*;

    #[test]
    fn what_is_live_changes_at_once_and_nothing_else() {
        let old = loaded(&[]).unwrap();
        let flags = "--listen=[::1]:1 --admin=off --admin-key-file=keys --insecure \
            --auth-keys=HS256:tests/keys/secret \
            --auth-issuer=a --auth-audience=a --auth-leeway=9s --origins=https://a \
            --echo --shards=3 --cpus=0 --mailbox-len-max=17 \
            --trusted-proxies=10.0.0.0/8 --proxy-protocol=optional \
            --connections-per-address-max=9 --handshakes-per-second=9/99 \
            --handshakes-per-second-per-address=9 --frame-bytes-max=1KiB \
            --messages-per-second=9 --bytes-per-second=9KiB --members-per-room-max=*=9 \
            --room-id-alphabet=token \
            --publish-queue-len-max=17 --publish-bytes-max=2KiB \
            --connections-max=9 --handshakes-max=9 --handshake-bytes-max=9KiB \
            --target-bytes-max=3KiB --ws-message-bytes-max=2KiB --raw-message-bytes-max=2KiB \
            --echo-message-bytes-max=2KiB --partial-bytes-max=64MiB --high-water-mark=1MiB \
            --ready-rss-max=9GiB \
            --room-policy=*=drop-oldest/1MiB \
            --rooms-per-connection-max=9 --rooms-max=9 --room-id-bytes-max=9B \
            --user-id-bytes-max=9B --handshake-timeout=9s --close-timeout=9s \
            --message-timeout=9s --send-timeout=9s --ping-interval=off --pong-timeout=9s \
            --drain-delay=9s --drain-rate=9 --drain-timeout=9s --log-format=json --log-level=warn";
        let new = loaded(&flags.split_whitespace().collect::<Vec<_>>()).unwrap();
        let changes = old.settings.changes(&new.settings);
        assert_eq!(changes.len(), settings_command().get_arguments().count(), "{changes:?}");
        let (live, rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(|c| c.is_live);
        let reloaded = old.with_live(&new).unwrap();
        assert_eq!(old.settings.changes(&reloaded.settings), live);
        assert_eq!(reloaded.settings.changes(&new.settings), rest);
        let keys: Vec<_> = rest.iter().map(|change| change.key.as_str()).collect();
        let expected = [
            "listen",
            "admin",
            "shards",
            "cpus",
            "mailbox_len_max",
            "publish_queue_len_max",
            "log_format",
        ];
        assert_eq!(keys, expected, "what is fixed at the start");
        assert_eq!(live[0].to_string(), "admin_key_file off -> keys");
        let keys = r#"auth_keys ["off"] -> ["HS256:tests/keys/secret"]"#;
        assert!(live.iter().any(|change| change.to_string() == keys), "{live:?}");
        assert_eq!(reloaded.settings.verifier, new.settings.verifier);
        // And back to the defaults, which nobody has set.
        assert_eq!(reloaded.with_live(&old).unwrap().settings, old.settings);
    }

    #[test]
    fn another_key_in_the_same_file_is_a_change() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let load = |secret: &str| {
            std::fs::write(&file, secret).unwrap();
            loaded(&[&format!("--auth-keys=HS256:{}", file.path().display())]).unwrap()
        };
        let (old, same, new) =
            (load(&"a".repeat(32)), load(&"a".repeat(32)), load(&"b".repeat(32)));
        assert_eq!(old.settings.changes(&same.settings), []);
        let changes = old.settings.changes(&new.settings);
        let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(changes, ["auth_keys keys -> other keys in the same files"]);
        let reloaded = old.with_live(&new).unwrap();
        assert_eq!(reloaded.settings.verifier, new.settings.verifier);
    }

    #[test]
    fn nothing_changes_without_a_change() {
        let settings = settings(&["--ping-interval=90s"]).unwrap();
        assert_eq!(settings.changes(&settings), []);
    }
}
