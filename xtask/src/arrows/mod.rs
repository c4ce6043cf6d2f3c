//! Who may use whom: reads the sources and holds them to the rooms of the architecture.
//!
//! A reader of text, not a compiler: it knows comments, strings, `use` trees and paths, which is what an arrow between
//! rooms is made of. What macros write is not seen.

mod paths;
mod rules;
mod source;

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use rules::World;

use crate::root;

/// A line that breaks a rule.
#[derive(Debug)]
pub(crate) struct Violation {
    file: String,
    line: usize,
    what: String,
    reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what, reason } = self;
        write!(f, "{file}:{line}: {what}, but {reason}")
    }
}

/// Prints every forbidden arrow of the workspace and fails if there is one.
pub(crate) fn run(root: &Path) -> Result<()> {
    let (files, violations) = check(root)?;
    for v in &violations {
        println!("{v}");
    }
    if !violations.is_empty() {
        bail!("{} broken rules in {files} files (see: xtask/src/arrows/rules.rs)", violations.len());
    }
    println!("{files} files keep to the rooms");
    Ok(())
}

/// The number of files read, and what is wrong with them.
fn check(root: &Path) -> Result<(usize, Vec<Violation>)> {
    let mut files = Vec::new();
    for room in rules::ROOMS {
        sources(&root.join(room.place), &mut files)?;
    }
    files.sort();
    files.dedup();
    let mut texts = Vec::new();
    for file in files {
        let name = file.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
        texts.push((name, fs::read_to_string(&file).with_context(|| file.display().to_string())?));
    }
    let world = World { crates: dependencies(root)?, edge_traits: edge_traits(&texts) };
    let violations = texts.iter().flat_map(|(name, text)| check_text(name, text, &world)).collect();
    Ok((texts.len(), violations))
}

/// What is wrong with one file.
fn check_text(file: &str, text: &str, world: &World) -> Vec<Violation> {
    let module = module_of(file);
    let code = source::code_only(text);
    let (references, traits) = paths::references(&code, &module);
    let violation =
        |line, what, reason: &str| Violation { file: file.into(), line, what, reason: reason.into() };
    let mut out = Vec::new();
    let mut told = HashSet::new();
    for r in &references {
        let Some(reason) = rules::judge(file, r, world) else { continue };
        // The place that lets a name in is told, not everything that is done with it.
        if !told.iter().any(|t: &&[String]| r.path.starts_with(t)) {
            told.insert(&r.path[..]);
            out.push(violation(r.line, format!("uses {}", r.path.join("::")), reason));
        }
    }
    for t in &traits {
        if let Some(reason) = rules::judge_trait(file, t) {
            let name = t.path.last().map_or("", String::as_str);
            out.push(violation(t.line, format!("implements {name}"), reason));
        }
    }
    let lines = source::lines_without_tests(text);
    let max = rules::room_of(file).map_or(usize::MAX, |r| r.lines_max);
    if lines > max && !file.contains("/tests/") {
        let reason = format!("a file here has at most {max} lines without its tests");
        out.push(violation(lines, format!("has {lines} lines"), &reason));
    }
    out
}

/// `src/core/tasks/mod.rs` is the module core::tasks, `src/core/time.rs` is core::time.
fn module_of(file: &str) -> Vec<String> {
    let inside = file.split_once("src/").map_or(file, |(_, rest)| rest).trim_end_matches(".rs");
    let parts = inside.split('/').filter(|p| !matches!(*p, "mod" | "lib" | "main"));
    parts.map(str::to_owned).collect()
}

/// All Rust files below a folder but those that hold only tests.
fn sources(place: &Path, out: &mut Vec<std::path::PathBuf>) -> Result<()> {
    if place.is_file() {
        out.push(place.to_owned());
    }
    let Ok(entries) = fs::read_dir(place) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Unit tests in a file or folder of their own may use what they like; those of integration-tests may not.
        let tests = matches!(name.as_str(), "tests" | "tests.rs")
            && !path.starts_with(root().join("integration-tests"));
        if path.is_dir() && !tests && name != "target" {
            sources(&path, out)?;
        } else if name.ends_with(".rs") && !tests {
            out.push(path);
        }
    }
    Ok(())
}

/// The crates that the workspace may name, from `[workspace.dependencies]`, and its own.
fn dependencies(root: &Path) -> Result<Vec<String>> {
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let (_, table) =
        manifest.split_once("[workspace.dependencies]").context("no [workspace.dependencies]")?;
    let table = table.split_once("\n[").map_or(table, |(t, _)| t);
    let names =
        table.lines().filter_map(|l| l.split_once(['=', '.'])).map(|(name, _)| name.trim().replace('-', "_"));
    Ok(names.chain(["hive", "hive_bench"].map(String::from)).collect())
}

fn edge_traits(texts: &[(String, String)]) -> Vec<String> {
    let edge = texts.iter().filter(|(name, _)| name.starts_with("src/edge/"));
    let declared = edge.flat_map(|(_, text)| {
        text.lines().filter_map(|l| l.split_once("pub trait ").or(l.split_once("pub(crate) trait ")))
    });
    declared.map(|(_, rest)| rest.chars().take_while(|c| c.is_alphanumeric()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_to_its_rooms() {
        let (files, violations) = check(root()).expect("sources");
        let text: Vec<_> = violations.iter().map(ToString::to_string).collect();
        assert!(text.is_empty(), "\n{}\n", text.join("\n"));
        assert!(files > 20, "only {files} files found");
    }

    #[test]
    fn a_message_names_place_thing_and_reason() {
        let world = World { crates: vec!["tokio".into()], ..World::default() };
        let v = check_text("src/core/time.rs", "\nuse tokio::time;", &world);
        let text = v[0].to_string();
        assert!(text.starts_with("src/core/time.rs:2: uses tokio::time, but the core is"), "{text}");
    }

    #[test]
    fn modules_follow_folders() {
        assert_eq!(module_of("src/core/tasks/mod.rs"), ["core", "tasks"]);
        assert_eq!(module_of("src/core/time.rs"), ["core", "time"]);
        assert_eq!(module_of("proto/src/lib.rs"), [""; 0]);
    }
}
