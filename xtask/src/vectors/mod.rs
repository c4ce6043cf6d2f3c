//! Golden vectors: bytes that the typed interface of the protocol writes, and what they mean.

mod cases;
mod life;
mod refused;
// The words for meanings are those of the tests that hold the crate to the vectors.
#[path = "../../../proto/tests/support/meaning.rs"]
pub(crate) mod meaning;

use std::fmt::Write;

use hive_proto::Code;
use hive_proto::fragment::split;
use serde_json::{Map, Value};

pub(crate) use life::example;

/// Vectors that belong together: one file.
pub(crate) struct Group {
    name: &'static str,
    about: &'static str,
    vectors: Vec<Vector>,
}

/// Bytes and what they stand for.
pub(crate) struct Vector {
    pub(crate) name: String,
    about: String,
    pub(crate) bytes: Vec<u8>,
    means: Means,
}

enum Means {
    Frame,
    /// A frame that travels as fragments of so many bytes.
    Fragmented {
        stream: u32,
        fragment_bytes: usize,
    },
    Error {
        at: &'static str,
        code: Code,
        frame_bytes_max: usize,
    },
}

/// The files of `proto/vectors`: name and content.
pub(crate) fn files() -> Vec<(String, String)> {
    groups().iter().map(|g| (format!("{}.json", g.name), g.render())).collect()
}

/// Every group.
pub(crate) fn groups() -> Vec<Group> {
    let mut groups = cases::groups();
    groups.push(life::group());
    groups.push(refused::group());
    groups
}

impl Group {
    pub(crate) fn vectors(&self) -> &[Vector] {
        &self.vectors
    }

    fn render(&self) -> String {
        let vectors: Vec<_> = self.vectors.iter().map(Vector::render).collect();
        let (name, about) = (Value::from(self.name), Value::from(self.about));
        format!(
            "{{\n\"group\": {name},\n\"about\": {about},\n\"vectors\": [\n{}\n]\n}}\n",
            vectors.join(",\n")
        )
    }
}

impl Vector {
    fn frame(name: &str, about: &str, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), about: about.into(), bytes, means: Means::Frame }
    }

    fn render(&self) -> String {
        let (name, about, hex) =
            (Value::from(&*self.name), Value::from(&*self.about), meaning::hex(&self.bytes));
        let mut out = format!(" {{\"name\": {name},\n  \"about\": {about},\n  \"hex\": \"{hex}\",\n");
        let frame = || {
            let frame = meaning::describe(&self.bytes).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            assert_eq!(meaning::build(&frame), self.bytes, "{name} does not come back");
            format!("  \"frame\": {}", sorted(frame))
        };
        // Writing to a string cannot fail.
        let _ = match self.means {
            Means::Frame => write!(out, "{}}}", frame()),
            Means::Fragmented { stream, fragment_bytes } => {
                let mut pieces = Vec::new();
                split(&self.bytes, stream, fragment_bytes, |f| pieces.push(meaning::hex(&f)));
                let pieces = Value::from(pieces);
                let how = format!(
                    "  \"stream\": {stream}, \"fragment_bytes\": {fragment_bytes},\n  \"fragments\": {pieces}"
                );
                write!(out, "{},\n{how}}}", frame())
            }
            Means::Error { at, code, frame_bytes_max } => {
                let code = code.name();
                write!(
                    out,
                    "  \"error\": \"{code}\", \"at\": \"{at}\", \"frame_bytes_max\": {frame_bytes_max}}}"
                )
            }
        };
        out
    }
}

/// The same value with its keys in order, whatever order `serde_json` was built to keep.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            Map::from_iter(fields).into()
        }
        Value::Array(list) => list.into_iter().map(sorted).collect(),
        plain => plain,
    }
}
