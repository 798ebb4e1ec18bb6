//! Profiles as the pprof tools read them: `perftools.profiles.Profile`, protobuf in gzip.
//!
//! Source: `proto/profile.proto` of github.com/google/pprof. The fields that are not used here are
//! left out, which readers take for empty.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::symbols::{Symbol, Symbols};
use crate::io::sampler::Samples;

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// A profile under construction: everything in it is named by a number.
#[derive(Default)]
struct Builder {
    profile: Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<(usize, bool), u64>,
    symbols: Symbols,
}

impl Builder {
    fn string(&mut self, text: &str) -> i64 {
        if let Some(&number) = self.strings.get(text) {
            return number;
        }
        let number = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.into());
        self.strings.insert(text.into(), number);
        number
    }

    fn value_type(&mut self, name: &str, unit: &str) -> ValueType {
        ValueType { r#type: self.string(name), unit: self.string(unit) }
    }

    fn function(&mut self, symbol: &Symbol) -> u64 {
        let (name, filename) = (self.string(&symbol.name), self.string(&symbol.file));
        let functions = &mut self.profile.function;
        *self.functions.entry((name, filename)).or_insert_with(|| {
            let id = functions.len() as u64 + 1;
            functions.push(Function { id, name, filename });
            id
        })
    }

    fn location(&mut self, address: usize, is_innermost: bool) -> u64 {
        if let Some(&id) = self.locations.get(&(address, is_innermost)) {
            return id;
        }
        let symbols = self.symbols.at(address, is_innermost).to_vec();
        let line = |symbol: &Symbol| Line {
            function_id: self.function(symbol),
            line: i64::from(symbol.line),
        };
        let line = symbols.iter().map(line).collect();
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(Location { id, address: address as u64, line });
        self.locations.insert((address, is_innermost), id);
        id
    }
}

/// A profile with two values, samples and nanoseconds, and the thread as a label.
///
/// # Errors
/// What the compressor says.
pub(super) fn write(samples: &Samples) -> io::Result<Vec<u8>> {
    let mut builder = Builder::default();
    // The first one has to be empty.
    builder.string("");
    let period = i64::try_from(samples.period.as_nanos()).unwrap_or(i64::MAX);
    let count = builder.value_type("samples", "count");
    let time = builder.value_type("cpu", "nanoseconds");
    let thread_label = builder.string("thread");
    for ((thread, stack), &count) in &samples.stacks {
        let places = stack.iter().enumerate();
        let location_id = places.map(|(n, &address)| builder.location(address, n == 0)).collect();
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let value = vec![count, count.saturating_mul(period)];
        let label = Label { key: thread_label, str: builder.string(&samples.threads[*thread]) };
        builder.profile.sample.push(Sample { location_id, value, label: vec![label] });
    }
    let duration_nanos = i64::try_from(samples.duration.as_nanos()).unwrap_or(i64::MAX);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let profile = Profile {
        sample_type: vec![count, time],
        period_type: Some(time),
        period,
        duration_nanos,
        time_nanos: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX) - duration_nanos,
        ..builder.profile
    };
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&profile.encode_to_vec())?;
    gzip.finish()
}
