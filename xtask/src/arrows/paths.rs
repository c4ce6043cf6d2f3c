//! The paths that a file names, resolved to where they lead.

use std::collections::HashMap;

/// A path such as `std::time::Instant`, with the line that names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Reference {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

/// A trait that the file implements for something.
pub(crate) type Implementation = Reference;

/// Every path of a file, and every trait it implements. `module` is the path of the file's module, without `crate`.
///
/// Names that a `use` brought in are replaced by what they stand for, `self` and `super` by the module they mean. Paths
/// of one segment that no `use` explains are left out: they are local.
pub(crate) fn references(code: &str, module: &[String]) -> (Vec<Reference>, Vec<Implementation>) {
    let tokens = tokens(code);
    let mut imports = Vec::new();
    let mut spots = Vec::new();
    let mut traits = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        match tokens[i].text {
            "use" => i = use_tree(&tokens, i + 1, &[], &mut imports),
            "impl" => {
                if let Some(name) = implemented_trait(&tokens, i + 1) {
                    traits.push(name);
                }
                i += 1;
            }
            _ if is_path_start(&tokens, i) => {
                let path = path_at(&tokens, i);
                i += 2 * path.path.len() - 1;
                spots.push(path);
            }
            _ => i += 1,
        }
    }
    let mut known = HashMap::new();
    for (alias, import) in &mut imports {
        import.path = absolute(&import.path, module, &known);
        known.insert(alias.clone(), import.path.clone());
    }
    let resolve = |r: Reference| Reference { path: absolute(&r.path, module, &known), line: r.line };
    let named = spots.into_iter().map(resolve).filter(|r| r.path.len() > 1);
    let traits = traits.into_iter().map(resolve).collect();
    (imports.into_iter().map(|(_, r)| r).chain(named).collect(), traits)
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

impl Token<'_> {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    for (line, text) in code.lines().enumerate() {
        let mut rest = text.trim_start();
        while let Some(c) = rest.chars().next() {
            let len = match c {
                c if c.is_alphanumeric() || c == '_' => {
                    rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
                }
                ':' if rest.starts_with("::") => 2,
                '-' if rest.starts_with("->") => 2,
                c => c.len_utf8(),
            };
            out.push(Token { text: &rest[..len], line: line + 1 });
            rest = rest[len..].trim_start();
        }
    }
    out
}

fn is_path_start(tokens: &[Token<'_>], i: usize) -> bool {
    // After a dot or `::` of a type (`<T as U>::f`) stands no path of its own.
    let after = i.checked_sub(1).is_some_and(|p| matches!(tokens[p].text, "." | "::"));
    tokens[i].is_word() && !after
}

fn path_at(tokens: &[Token<'_>], i: usize) -> Reference {
    let mut path = vec![tokens[i].text.to_owned()];
    let mut at = i;
    while let [colons, word, ..] = &tokens[at + 1..] {
        if colons.text != "::" || !word.is_word() {
            break;
        }
        path.push(word.text.to_owned());
        at += 2;
    }
    Reference { path, line: tokens[i].line }
}

/// Reads one use tree from `i`; gives where it ended.
fn use_tree(
    tokens: &[Token<'_>],
    mut i: usize,
    before: &[String],
    out: &mut Vec<(String, Reference)>,
) -> usize {
    let mut path = before.to_vec();
    let line = tokens.get(i).map_or(0, |t| t.line);
    while let Some(t) = tokens.get(i) {
        match t.text {
            "::" => i += 1,
            "{" => {
                i += 1;
                while tokens.get(i).is_some_and(|t| t.text != "}") {
                    i = use_tree(tokens, i, &path, out);
                    if tokens.get(i).is_some_and(|t| t.text == ",") {
                        i += 1;
                    }
                }
                return i + 1;
            }
            "as" => {
                let alias = tokens.get(i + 1).map_or("_", |t| t.text);
                out.push((alias.to_owned(), Reference { path, line }));
                return i + 2;
            }
            // `a::{self}` is `a`.
            "self" if !path.is_empty() => i += 1,
            "*" => {
                path.push("*".to_owned());
                i += 1;
            }
            _ if t.is_word() => {
                path.push(t.text.to_owned());
                i += 1;
            }
            _ => break,
        }
    }
    if let Some(last) = path.last() {
        out.push((last.clone(), Reference { path, line }));
    }
    // A stray token must not stop the reader for ever.
    if tokens.get(i).is_some_and(|t| matches!(t.text, "," | "}")) { i } else { i + 1 }
}

/// The trait in `impl<...> path::Trait<...> for Type`; `None` for an inherent block.
fn implemented_trait(tokens: &[Token<'_>], i: usize) -> Option<Reference> {
    let skip_generics = |mut i: usize| {
        let mut depth = 0;
        while let Some(t) = tokens.get(i) {
            match t.text {
                "<" => depth += 1,
                ">" => depth -= 1,
                _ if depth == 0 => break,
                _ => {}
            }
            i += 1;
            if depth == 0 {
                break;
            }
        }
        i
    };
    let at_generics = |i: usize| tokens.get(i).is_some_and(|t| t.text == "<");
    let start = if at_generics(i) { skip_generics(i) } else { i };
    tokens.get(start).filter(|t| t.is_word())?;
    let path = path_at(tokens, start);
    let after = start + 2 * path.path.len() - 1;
    let after = if at_generics(after) { skip_generics(after) } else { after };
    (tokens.get(after)?.text == "for").then_some(path)
}

fn absolute(path: &[String], module: &[String], known: &HashMap<String, Vec<String>>) -> Vec<String> {
    let in_crate = |from: &[String], rest: &[String]| [&["crate".to_owned()][..], from, rest].concat();
    match path[0].as_str() {
        "self" => in_crate(module, &path[1..]),
        "super" => {
            let ups = path.iter().take_while(|s| *s == "super").count();
            in_crate(&module[..module.len().saturating_sub(ups)], &path[ups..])
        }
        first => match known.get(first) {
            Some(import) => [&import[..], &path[1..]].concat(),
            None => path.to_vec(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(code: &str) -> Vec<String> {
        let module = ["core".to_owned(), "tasks".to_owned()];
        references(code, &module).0.into_iter().map(|r| format!("{} {}", r.line, r.path.join("::"))).collect()
    }

    #[test]
    fn use_trees_are_unfolded() {
        let code =
            "use a::{b, c::{d, self}, e as f};\npub(crate) use super::g::*;\nuse crate::h;\nuse ::i::j;";
        let want = ["1 a::b", "1 a::c::d", "1 a::c", "1 a::e", "2 crate::core::g::*", "3 crate::h", "4 i::j"];
        assert_eq!(named(code), want);
    }

    #[test]
    fn names_lead_to_where_they_were_imported_from() {
        let code = "use std::time as t;\nuse std::thread::{self};\nfn x(a: u8) { t::Instant::now(); thread::sleep(a.b); Self::y() }";
        let got = named(code);
        assert!(got.contains(&"3 std::time::Instant::now".to_owned()), "{got:?}");
        assert!(got.contains(&"3 std::thread::sleep".to_owned()), "{got:?}");
    }

    #[test]
    fn self_and_super_mean_modules() {
        assert_eq!(
            named("fn x() { super::super::edge::y(); self::z::w() }"),
            ["1 crate::edge::y", "1 crate::core::tasks::z::w"]
        );
    }

    #[test]
    fn traits_are_found_whatever_their_generics() {
        let code = "use actix::{Actor, Handler as H};\nimpl Actor for A {}\nimpl<T: Into<u8>> H<M<T>> for A {}\nimpl A {}\nimpl actix::Supervised for A {}";
        let got: Vec<_> = references(code, &[])
            .1
            .into_iter()
            .map(|r| format!("{} {}", r.line, r.path.join("::")))
            .collect();
        assert_eq!(got, ["2 actix::Actor", "3 actix::Handler", "5 actix::Supervised"]);
    }
}
