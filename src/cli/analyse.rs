//! What the demo's workers do: read a file and count. Pure but for the reader it is given.

use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What is found in one file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Analysis {
    /// By extension or name.
    pub(crate) language: String,
    pub(crate) bytes: u64,
    /// Newline bytes.
    pub(crate) lines: u64,
    /// Maximal runs of bytes other than space, \t, \n, \v, \f and \r.
    pub(crate) words: u64,
    /// Comments that say TODO.
    pub(crate) todos: u64,
    /// SHA-256, 64 hexadecimal digits.
    pub(crate) sha256: String,
}

/// Reads a file to its end.
pub(crate) fn analyse(path: &Path, mut from: impl Read) -> io::Result<Analysis> {
    let mut counts = Counts { indent: true, ..Counts::default() };
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; 64 * 1024]);
    loop {
        let n = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hash.update(&chunk[..n]);
        chunk[..n].iter().for_each(|b| counts.add(*b));
        counts.bytes += n as u64;
    }
    let bytes = counts.bytes;
    counts.look_for_todo(b' ');
    let Counts { lines, words, todos, .. } = counts;
    Ok(Analysis {
        language: language(path).into(),
        bytes,
        lines,
        words,
        todos,
        sha256: hex(&hash.finalize()),
    })
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[derive(Default)]
struct Counts {
    bytes: u64,
    lines: u64,
    words: u64,
    todos: u64,
    in_word: bool,
    /// The line has opened a comment.
    in_comment: bool,
    /// Only blanks so far in this line.
    indent: bool,
    /// The last eight bytes.
    last: u64,
}

impl Counts {
    fn add(&mut self, b: u8) {
        self.look_for_todo(b);
        let blank = matches!(b, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
        self.words += u64::from(!blank && !self.in_word);
        self.in_word = !blank;
        if b == b'\n' {
            self.lines += 1;
            (self.in_comment, self.indent) = (false, true);
            return;
        }
        let pair = (self.last & 0xffff) as u16;
        let opens = b == b'#' || b == b'*' && self.indent;
        self.in_comment |= opens || [*b"//", *b"/*", *b"--"].iter().any(|m| u16::from_be_bytes(*m) == pair);
        self.indent &= blank;
    }

    /// Counts a TODO that stands alone before `next`.
    fn look_for_todo(&mut self, next: u8) {
        const TODO: u32 = u32::from_be_bytes(*b"TODO");
        if self.in_comment && self.last as u32 == TODO {
            let before = (self.last >> 32) as u8;
            self.todos += u64::from(!before.is_ascii_alphanumeric() && !next.is_ascii_alphanumeric());
        }
        self.last = self.last << 8 | u64::from(next);
    }
}

const LANGUAGES: &[(&str, &[&str])] = &[
    ("Assembly", &["s", "asm"]),
    ("C", &["c"]),
    ("C header", &["h"]),
    ("C++", &["cc", "cpp", "cxx", "hh", "hpp", "hxx"]),
    ("C#", &["cs"]),
    ("CSS", &["css", "scss", "less"]),
    ("CSV", &["csv", "tsv"]),
    ("Go", &["go"]),
    ("HTML", &["html", "htm"]),
    ("Image", &["png", "jpg", "jpeg", "gif", "svg", "ico", "webp"]),
    ("Java", &["java"]),
    ("JavaScript", &["js", "mjs", "cjs", "jsx"]),
    ("JSON", &["json"]),
    ("Kotlin", &["kt", "kts"]),
    ("Lua", &["lua"]),
    ("Make", &["mk", "cmake"]),
    ("Markdown", &["md", "markdown"]),
    ("Perl", &["pl", "pm"]),
    ("PHP", &["php"]),
    ("Protobuf", &["proto"]),
    ("Python", &["py", "pyi"]),
    ("Ruby", &["rb"]),
    ("Rust", &["rs"]),
    ("Shell", &["sh", "bash", "zsh", "fish"]),
    ("SQL", &["sql"]),
    ("Swift", &["swift"]),
    ("Text", &["txt", "rst", "adoc"]),
    ("TOML", &["toml"]),
    ("TypeScript", &["ts", "tsx"]),
    ("XML", &["xml", "xsd"]),
    ("YAML", &["yml", "yaml"]),
    ("Zig", &["zig"]),
];

fn language(path: &Path) -> &'static str {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match &*name {
        "Makefile" | "CMakeLists.txt" | "GNUmakefile" => return "Make",
        "Dockerfile" => return "Docker",
        "Cargo.lock" | "Cargo.toml.orig" => return "TOML",
        n if n.starts_with("LICENSE")
            || n.starts_with("COPYING")
            || n.starts_with("README") && !n.contains('.') =>
        {
            return "Text";
        }
        _ => {}
    }
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let known = LANGUAGES.iter().find(|(_, extensions)| extensions.contains(&&*extension));
    known.map_or("Other", |(language, _)| language)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &[u8]) -> Analysis {
        analyse(Path::new(name), text).expect("a slice")
    }

    #[test]
    fn counts_are_those_of_wc_and_sha256sum() {
        let a = of("a.rs", b"one two\tthree\n\x0bfour\x0cfive\r\n\nno newline");
        assert_eq!((a.bytes, a.lines, a.words), (37, 3, 7));
        let empty = of("x", b"");
        assert_eq!((empty.bytes, empty.lines, empty.words), (0, 0, 0));
        assert_eq!(empty.sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(
            of("x", b"abc").sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(of("x", "\u{a0}ä\u{2003}b".as_bytes()).words, 1, "only the six ASCII blanks part words");
    }

    #[test]
    fn comments_that_say_todo_are_counted() {
        let counted = |text: &str| of("x.rs", text.as_bytes()).todos;
        for (text, n) in [
            ("// TODO: one\n", 1),
            ("let x = 1; // TODO", 1),
            ("# TODO\n-- TODO(me) and TODO\n", 3),
            ("/*\n * TODO more\n */", 1),
            ("* TODO", 1),
            ("let TODO = 2 * TODO;\n", 0),
            ("// TODOS, METODO\n", 0),
            ("// one\nTODO\n", 0),
        ] {
            assert_eq!(counted(text), n, "{text:?}");
        }
    }

    #[test]
    fn a_chunk_boundary_changes_nothing() {
        struct OneByOne<'a>(&'a [u8]);
        impl Read for OneByOne<'_> {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                let n = self.0.len().min(1);
                buf[..n].copy_from_slice(&self.0[..n]);
                self.0 = &self.0[n..];
                Ok(n)
            }
        }
        let text = b"a b  c\n// TODO x\n\n * TODO\n";
        assert_eq!(analyse(Path::new("x.c"), OneByOne(text)).expect("read"), of("x.c", text));
    }

    #[test]
    fn languages_are_told_by_extension_and_name() {
        for (name, language) in
            [("a/b.rs", "Rust"), ("B.PY", "Python"), ("Makefile", "Make"), (".bashrc", "Other")]
        {
            assert_eq!(of(name, b"").language, language);
        }
    }
}
