//! Source text as the rules want it: without comments, strings and tests, with every line where it was.

/// Blanks comments, strings, characters, and items under `#[cfg(test)]`; keeps length and line breaks.
pub(crate) fn code_only(source: &str) -> String {
    blank_tests(&blank_text(source))
}

/// Lines up to the tests of the file, which by custom stand last.
pub(crate) fn lines_without_tests(source: &str) -> usize {
    let code = blank_text(source);
    match code.find("#[cfg(test)]\nmod tests {") {
        Some(at) => source[..at].trim_end().lines().count(),
        None => source.lines().count(),
    }
}

fn blank_text(source: &str) -> String {
    let b = source.as_bytes();
    let mut out = b.to_vec();
    let mut i = 0;
    while i < b.len() {
        let end = match b[i] {
            b'/' if b.get(i + 1) == Some(&b'/') => find(b, i, b"\n").unwrap_or(b.len()),
            b'/' if b.get(i + 1) == Some(&b'*') => block_comment_end(b, i),
            b'"' => string_end(b, i + 1),
            b'r' if !after_word(b, i) => raw_string_end(b, i).unwrap_or(i + 1),
            b'\'' => char_end(b, i).unwrap_or(i + 1),
            _ => i + 1,
        };
        if end > i + 1 {
            out[i..end].iter_mut().filter(|c| **c != b'\n').for_each(|c| *c = b' ');
        }
        i = end;
    }
    String::from_utf8(out).expect("whole characters were replaced by spaces")
}

fn find(b: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    b[from..].windows(what.len()).position(|w| w == what).map(|at| from + at)
}

fn block_comment_end(b: &[u8], start: usize) -> usize {
    let (mut i, mut depth) = (start + 2, 1);
    while i < b.len() && depth > 0 {
        match b.get(i..i + 2) {
            Some(b"/*") => (i, depth) = (i + 2, depth + 1),
            Some(b"*/") => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
    }
    i
}

fn string_end(b: &[u8], mut i: usize) -> usize {
    while i < b.len() && b[i] != b'"' {
        i += if b[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(b.len())
}

/// The end of `r"..."`, `r#"..."#` and so on, if that is what begins at `i`.
fn raw_string_end(b: &[u8], i: usize) -> Option<usize> {
    let hashes = b[i + 1..].iter().take_while(|c| **c == b'#').count();
    let quote = i + 1 + hashes;
    if b.get(quote) != Some(&b'"') {
        return None;
    }
    let close = [&b"\""[..], &vec![b'#'; hashes]].concat();
    Some(find(b, quote + 1, &close).map_or(b.len(), |at| at + close.len()))
}

/// The end of a character literal; `None` where the quote begins a lifetime.
fn char_end(b: &[u8], i: usize) -> Option<usize> {
    if b.get(i + 1) == Some(&b'\\') {
        return find(b, i + 3, b"'").map(|at| at + 1);
    }
    let close = find(&b[..b.len().min(i + 6)], i + 2, b"'")?;
    let one = std::str::from_utf8(&b[i + 1..close]).is_ok_and(|s| s.chars().count() == 1);
    one.then_some(close + 1)
}

fn after_word(b: &[u8], i: usize) -> bool {
    // `br"..."` is a raw string as well, `for"` is none.
    let before = b[..i].iter().rev().take_while(|c| c.is_ascii_alphanumeric() || **c == b'_').count();
    before > 1 || before == 1 && b[i - 1] != b'b'
}

fn blank_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(at) = find(&out, from, b"#[cfg(test)]") {
        let end = item_end(&out, at + b"#[cfg(test)]".len());
        out[at..end].iter_mut().filter(|c| **c != b'\n').for_each(|c| *c = b' ');
        from = end;
    }
    String::from_utf8(out).expect("whole characters were replaced by spaces")
}

/// Where the item that begins at `i` ends: at its first `;` outside brackets, or with its first block.
fn item_end(b: &[u8], i: usize) -> usize {
    let mut depth = 0_i32;
    for (at, c) in b.iter().enumerate().skip(i) {
        match c {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    // The brace of a `use` tree has a semicolon behind it.
                    return at + if b.get(at + 1) == Some(&b';') { 2 } else { 1 };
                }
            }
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    b.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_blanked_and_lines_stay() {
        let source = "a // b::c\n/* d::e /* f */ g */ h\n\"i::j \\\" k\" l r#\"m \" n\"# o br\"p\" 'q' '\\'' '\\u{e4}' 'ä' fn r<'s>(t: &'s str)";
        let code = code_only(source);
        assert_eq!(code.lines().count(), 3);
        let words: Vec<_> = code.split_whitespace().collect();
        assert_eq!(words, ["a", "h", "l", "o", "b", "fn", "r<'s>(t:", "&'s", "str)"]);
    }

    #[test]
    fn tests_are_blanked() {
        let source =
            "use a;\n#[cfg(test)]\nuse b::{c, d};\n#[cfg(test)]\nmod tests {\n  fn x() { e::f() }\n}\nuse g;";
        let code = code_only(source);
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["use", "a;", "use", "g;"]);
        assert_eq!(code.lines().count(), source.lines().count());
    }

    #[test]
    fn tests_do_not_count() {
        assert_eq!(lines_without_tests("a\nb\n\n#[cfg(test)]\nmod tests {\n}\n"), 2);
        assert_eq!(lines_without_tests("a\n// #[cfg(test)]\nb\n"), 3);
    }
}
