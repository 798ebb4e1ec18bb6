//! Configuration files for fuzzing: one that is taken means the same when it is printed and read
//! again, and one that is refused is refused in one line.

use std::path::Path;

use super::layers::{Action, ConfigError, Layer, Loaded};

/// The text of a configuration file. Files with keys that it names are not opened.
///
/// # Panics
/// When what `fanwire config` prints of it is another configuration, when the limits it comes to do
/// not fit together, or when an error has several lines.
pub fn fuzz_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let loaded = match read(text) {
        Ok(loaded) => loaded,
        Err(error) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains('\n'), "{error}");
            return;
        }
    };
    let printed = loaded.to_toml();
    let again = read(&printed).unwrap_or_else(|error| panic!("{error}:\n{printed}"));
    assert_eq!(loaded.settings, again.settings, "{printed}");
    assert_eq!(loaded.settings.changes(&again.settings), []);

    let none = read("").expect("the defaults are valid");
    for (from, to) in [(&none, &loaded), (&loaded, &none)] {
        if let Ok(reloaded) = from.with_live(to) {
            let rest = reloaded.settings.changes(&to.settings);
            assert!(rest.iter().all(|change| !change.is_live), "{rest:?}");
        }
    }

    if loaded.settings.authenticates() {
        // The limits have the keys in them.
        return;
    }
    let limits = loaded.settings.limits(2, 1000);
    let message_bytes_max = limits.ws_message_bytes_max.max(limits.raw_message_bytes_max);
    assert!(limits.target_bytes_max <= limits.handshake_bytes_max);
    assert!((1..=2000).contains(&limits.connections_max));
    assert!(limits.partial_bytes_max >= message_bytes_max.max(limits.echo_message_bytes_max));
    assert!(limits.policies.default.high_water_mark >= 2 * message_bytes_max as u64);
    for rate in [limits.messages_per_second, limits.bytes_per_second].into_iter().flatten() {
        assert!(rate.per_second >= 1 && rate.burst >= 1);
    }
}

/// Reads `text` as the file of a server that has nothing else.
fn read(text: &str) -> Result<Loaded, ConfigError> {
    let layer = Layer::from_text(Path::new("fuzz.toml"), text)?;
    let settings = layer.settings()?;
    settings.check().map_err(|conflict| layer.conflict(conflict))?;
    Ok(Loaded { action: Action::Serve, settings, warnings: Vec::new(), layer })
}
