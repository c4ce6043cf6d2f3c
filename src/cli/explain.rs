//! `hive explain` and `hive version`.

use hive_proto::Code;
use serde_json::json;

use super::failure::Failure;
use super::output;

/// Options of `hive explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Number or name of the code, such as 304 or stale_lease; all codes without it.
    code: Option<String>,
    /// Print one JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Options of `hive version`.
#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Explains one code, or lists them.
pub(crate) fn run(a: &Args) -> Result<(), Failure> {
    let Some(asked) = &a.code else {
        return Code::ALL.iter().try_for_each(|c| show(*c, a.json, false));
    };
    match find(asked) {
        Some(code) => show(code, a.json, true),
        None => Err(Failure::new(format!("no error code is called {asked:?}"), nearest(asked))
            .next("`hive explain` without an argument lists all codes")),
    }
}

/// Prints the version of the program and of the protocol.
pub(crate) fn version(a: &VersionArgs) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if a.json {
        return output::json_line(&json!({"version": version, "protocol": "1.0"}));
    }
    output::print_line(format!("hive {version} (protocol 1.0)").as_bytes())
}

fn find(asked: &str) -> Option<Code> {
    match asked.parse() {
        Ok(number) => Code::from_u16(number),
        Err(_) => Code::ALL.iter().copied().find(|c| c.name() == asked.to_lowercase().replace('-', "_")),
    }
}

fn nearest(asked: &str) -> String {
    let likeness = |c: &&Code| (strsim::jaro_winkler(c.name(), asked) * 1000.0) as u32;
    Code::ALL.iter().max_by_key(likeness).map_or_else(String::new, |c| format!("did you mean {}?", c.name()))
}

fn show(code: Code, as_json: bool, whole: bool) -> Result<(), Failure> {
    let (number, name, help) = (code as u16, code.name(), code.help());
    if as_json {
        return output::json_line(
            &json!({"code": number, "name": name, "retryable": code.retryable(), "help": help}),
        );
    }
    let retryable =
        if code.retryable() { "may succeed later, unchanged" } else { "will not succeed unchanged" };
    let text = match whole {
        true => format!("{number} {name}: {retryable}\n{help}"),
        false => format!("{number} {name}"),
    };
    output::print_line(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_by_number_and_name() {
        for asked in ["304", "stale_lease", "Stale-Lease"] {
            assert_eq!(find(asked), Some(Code::StaleLease), "{asked}");
        }
        assert_eq!((find("999"), find("stale")), (None, None));
        assert!(nearest("stale_leese").contains("stale_lease"));
    }
}
