//! Holds the crate to the golden vectors, and the vectors to the crate.

#[path = "support/meaning.rs"]
mod meaning;

use std::path::Path;

use hive_proto::codec::cut;
use hive_proto::fragment::{Assembler, split};
use hive_proto::frame::{FrameRef, MAGIC, Op};
use hive_proto::{Code, WireError};
use meaning::{build, describe, hex, unhex};
use serde_json::Value;

fn vectors() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    let files = std::fs::read_dir(folder).expect("vectors").map(|f| f.expect("entry").path());
    let groups = files.filter(|f| f.extension().is_some_and(|e| e == "json"));
    let read = |f| serde_json::from_str::<Value>(&std::fs::read_to_string(f).expect("file")).expect("JSON");
    groups.flat_map(|f| read(f)["vectors"].as_array().expect("vectors").clone()).collect()
}

fn bytes(v: &Value) -> Vec<u8> {
    unhex(v["hex"].as_str().expect("hex"))
}

#[test]
fn bytes_and_meaning_agree() {
    let mut seen = Vec::new();
    for v in vectors().iter().filter(|v| v.get("frame").is_some()) {
        let bytes = bytes(v);
        assert_eq!(cut(&bytes, bytes.len()), Ok(Some(bytes.len())), "{}", v["name"]);
        assert_eq!(describe(&bytes), Ok(v["frame"].clone()), "{}", v["name"]);
        assert_eq!(hex(&build(&v["frame"])), hex(&bytes), "{}", v["name"]);
        seen.push(v["frame"]["op"].as_str().expect("op").to_owned());
    }
    let missing: Vec<_> =
        Op::ALL.iter().map(|op| format!("{op:?}")).filter(|op| !seen.contains(op)).collect();
    assert!(missing.is_empty(), "no vector for {missing:?}");
}

#[test]
fn bad_bytes_are_refused_where_and_as_said() {
    let mut steps = Vec::new();
    for v in vectors().iter().filter(|v| v.get("error").is_some()) {
        let bytes = bytes(v);
        let max = v["frame_bytes_max"].as_u64().expect("limit") as usize;
        let refused: (&str, WireError) = match cut(&bytes, max) {
            Err(e) => ("cut", e),
            Ok(None) => panic!("{}: incomplete", v["name"]),
            Ok(Some(total)) => {
                assert_eq!(total, bytes.len(), "{}", v["name"]);
                describe(&bytes).expect_err("refused")
            }
        };
        let code = refused.1.code().map(Code::name);
        assert_eq!((Some(refused.0), code), (v["at"].as_str(), v["error"].as_str()), "{}", v["name"]);
        steps.push(refused.0);
    }
    for step in ["cut", "op", "header", "items"] {
        assert!(steps.contains(&step), "no vector is refused at {step}");
    }
}

#[test]
fn every_cut_of_a_frame_is_incomplete() {
    for v in vectors().iter().filter(|v| v.get("frame").is_some()) {
        let bytes = bytes(v);
        for n in 0..bytes.len() {
            assert_eq!(cut(&bytes[..n], bytes.len()), Ok(None), "{} cut at {n}", v["name"]);
        }
    }
}

#[test]
fn fragments_come_together() {
    let all = vectors();
    let fragmented: Vec<_> = all.iter().filter(|v| v.get("fragments").is_some()).collect();
    assert!(!fragmented.is_empty());
    for v in fragmented {
        let whole = bytes(v);
        let (stream, size) =
            (v["stream"].as_u64().expect("stream"), v["fragment_bytes"].as_u64().expect("size"));
        let mut pieces = Vec::new();
        split(&whole, stream as u32, size as usize, |f| pieces.push(f));
        let want: Vec<_> = v["fragments"]
            .as_array()
            .expect("list")
            .iter()
            .map(|f| unhex(f.as_str().expect("hex")))
            .collect();
        assert_eq!(pieces, want, "{}", v["name"]);
        let mut assembler = Assembler::new(1 << 16);
        let (last, first) = pieces.split_last().expect("pieces");
        for f in first {
            assert_eq!(assembler.push(FrameRef::parse(f).expect("frame")), Ok(None));
        }
        let got = assembler.push(FrameRef::parse(last).expect("frame")).expect("adds up").expect("whole");
        assert_eq!(got, whole, "{}", v["name"]);
    }
}

#[test]
fn a_connection_begins_with_the_magic() {
    assert_eq!(MAGIC, *b"HIVE");
}
