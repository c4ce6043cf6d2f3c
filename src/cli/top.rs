//! `hive top`: the server's status once per second, in the terminal or as JSON lines.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Cell, Row, Table};
use serde_json::{Value, json};

use super::failure::Failure;
use super::output;
use super::status::{SHARD_HEADS, Status, agents, bytes, duration, fetch, fetch_value, queues, shards, text};
use super::target::{Reach, Target};

const PERIOD: Duration = Duration::from_secs(1);

/// Options of `hive top`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// End after this many seconds' worth of JSON lines, or refreshes.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    reach: Reach,
}

/// Shows the status until q is pressed.
pub(crate) fn run(a: &Args) -> Result<(), Failure> {
    let target = a.reach.target();
    if a.reach.json {
        return json_lines(&target, a.count.unwrap_or(u64::MAX));
    }
    let first = fetch(&target)?;
    if !io::stdout().is_terminal() {
        return output::print(text(&first).as_bytes());
    }
    let mut terminal = ratatui::try_init().map_err(|e| Failure::new("cannot use the terminal", e))?;
    let done = watch(&mut terminal, &target, first, a.count.unwrap_or(u64::MAX));
    ratatui::restore();
    done.map_err(|e| Failure::new("cannot use the terminal", e))
}

/// Per second, from two looks at the same server.
#[derive(Clone, PartialEq, Debug, Default)]
struct Rates {
    submitted: f64,
    completed: f64,
    published: f64,
    delivered: f64,
    by_queue: HashMap<String, f64>,
}

impl Rates {
    fn between(before: &Status, now: &Status, time: Duration) -> Self {
        let s = time.as_secs_f64().max(0.001);
        // A restarted server counts from 0 again.
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / s;
        let (b, n) = (&before.totals, &now.totals);
        let was: HashMap<_, _> = before.queues.iter().map(|q| (q.name.as_str(), q.completed)).collect();
        let by_queue = now.queues.iter().map(|q| {
            let before = was.get(q.name.as_str()).copied().unwrap_or(0);
            (q.name.clone(), rate(before, q.completed))
        });
        Self {
            submitted: rate(b.submitted, n.submitted),
            completed: rate(b.completed, n.completed),
            published: rate(b.published, n.published),
            delivered: rate(b.delivered, n.delivered),
            by_queue: by_queue.collect(),
        }
    }
}

fn json_lines(target: &Target, count: u64) -> Result<(), Failure> {
    let mut before: Option<(Instant, Status)> = None;
    for i in 0..count {
        if i > 0 {
            std::thread::sleep(PERIOD);
        }
        let (value, at) = (fetch_value(target)?, Instant::now());
        let now = serde_json::from_value::<Status>(value.clone()).unwrap_or_default();
        let rates =
            before.map_or_else(Rates::default, |(then, before)| Rates::between(&before, &now, at - then));
        let mut value = value;
        if let Value::Object(o) = &mut value {
            let Rates { submitted, completed, published, delivered, .. } = rates;
            let rates = json!({"submitted_per_s": submitted, "completed_per_s": completed,
                "published_per_s": published, "delivered_per_s": delivered});
            o.insert("rates".into(), rates);
        }
        output::json_line(&value)?;
        before = Some((at, now));
    }
    Ok(())
}

/// What is on the screen.
struct View {
    status: Status,
    rates: Rates,
    /// Why the last look failed.
    trouble: Option<String>,
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    target: &Target,
    first: Status,
    count: u64,
) -> io::Result<()> {
    let looks = look_every_second(target.clone());
    let mut at = Instant::now();
    let mut view = View { status: first, rates: Rates::default(), trouble: None };
    let mut seen = 1;
    loop {
        terminal.draw(|frame| draw(frame, &view))?;
        if seen >= count {
            return Ok(());
        }
        if event::poll(Duration::from_millis(50))? && is_quit(&event::read()?) {
            return Ok(());
        }
        for look in looks.try_iter() {
            match look {
                Ok(now) => {
                    view.rates = Rates::between(&view.status, &now, at.elapsed());
                    (view.status, view.trouble, at) = (now, None, Instant::now());
                }
                Err(e) => view.trouble = Some(e.to_string()),
            }
            seen += 1;
        }
    }
}

/// A server that does not answer must not keep q from being heard.
fn look_every_second(target: Target) -> mpsc::Receiver<Result<Status, Failure>> {
    let (tx, rx) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(PERIOD);
            if tx.send(fetch(&target)).is_err() {
                return;
            }
        }
    });
    rx
}

fn is_quit(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

fn draw(frame: &mut Frame<'_>, view: &View) {
    let s = &view.status;
    let fill = Constraint::Fill(1);
    let shard_rows = u16::try_from(s.shards.len()).unwrap_or(8).min(8) + 3;
    let [head, top, middle, bottom] =
        Layout::vertical([Constraint::Length(4), fill, fill, Constraint::Length(shard_rows)])
            .areas(frame.area());
    frame.render_widget(Text::from(heading(view)), head);
    let mut rows = queues(s);
    for row in &mut rows {
        row.push(format!("{:.0}", view.rates.by_queue.get(&row[0]).copied().unwrap_or(0.0)));
    }
    let heads = [
        "queue",
        "durability",
        "waiting",
        "scheduled",
        "running",
        "completed",
        "dead",
        "consumers",
        "done/s",
    ];
    list(frame, top, "queues", &heads, rows);
    list(
        frame,
        middle,
        &format!("agents ({})", s.agents_total),
        &["agent", "client", "labels", "connected"],
        agents(s),
    );
    list(frame, bottom, "shards", &SHARD_HEADS, shards(s));
}

fn heading(view: &View) -> Vec<Line<'static>> {
    let (s, r) = (&view.status, &view.rates);
    let up = duration(s.uptime_s);
    let draining = if s.draining { "  DRAINING" } else { "" };
    let restarted: Vec<_> =
        s.actors.iter().filter(|a| a.restarts > 0).map(|a| format!("{} x{}", a.name, a.restarts)).collect();
    let trouble = match (&view.trouble, restarted.is_empty()) {
        (Some(why), _) => Line::from(format!("no answer: {why}")).style(Style::new().fg(Color::Red)),
        (None, true) => Line::from("no actor has restarted; q quits").dim(),
        (None, false) => {
            Line::from(format!("restarts: {}", restarted.join(", "))).style(Style::new().fg(Color::Yellow))
        }
    };
    vec![
        Line::from(format!("hive {} at {}  up {up}{draining}", s.version, s.server)).bold(),
        Line::from(format!(
            "tasks/s: {:.0} submitted, {:.0} completed   messages/s: {:.0} published, {:.0} delivered",
            r.submitted, r.completed, r.published, r.delivered
        )),
        Line::from(format!(
            "memory {} of {}   {} connections",
            bytes(s.memory_bytes),
            bytes(s.memory_bytes_max),
            s.connections
        )),
        trouble,
    ]
}

fn list(frame: &mut Frame<'_>, area: Rect, title: &str, heads: &[&str], rows: Vec<Vec<String>>) {
    let width = |i: usize| {
        rows.iter().filter_map(|r| r.get(i)).map(String::len).chain([heads[i].len()]).max().unwrap_or(0)
    };
    let widths: Vec<_> =
        (0..heads.len()).map(|i| Constraint::Length(u16::try_from(width(i)).unwrap_or(40).min(40))).collect();
    let header = Row::new(heads.iter().map(|h| Cell::from((*h).to_owned()))).bold();
    let rows = rows.into_iter().map(Row::new);
    let table = Table::new(rows, widths).header(header).column_spacing(2);
    frame.render_widget(table.block(Block::bordered().title(title.to_owned())), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::{Actor, Queue, Totals};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn status(completed: u64) -> Status {
        let queue =
            Queue { name: "thumbs".into(), durability: "memory".into(), completed, ..Queue::default() };
        let actor = Actor { name: "hub-0".into(), restarts: 2, last_panic: None };
        let totals = Totals { completed, ..Totals::default() };
        Status { queues: vec![queue], actors: vec![actor], totals, ..Status::default() }
    }

    #[test]
    fn rates_are_differences_and_never_negative() {
        let r = Rates::between(&status(100), &status(300), Duration::from_secs(2));
        assert_eq!((r.completed, r.by_queue["thumbs"]), (100.0, 100.0));
        assert_eq!(Rates::between(&status(300), &status(0), Duration::from_secs(1)).completed, 0.0);
    }

    #[test]
    fn the_screen_shows_queues_rates_and_restarts() {
        let rates = Rates::between(&status(0), &status(70), Duration::from_secs(1));
        let view = View { status: status(70), rates, trouble: None };
        let mut terminal = Terminal::new(TestBackend::new(110, 30)).expect("a test terminal");
        terminal.draw(|f| draw(f, &view)).expect("drawn");
        let screen = terminal.backend().to_string();
        for part in ["thumbs", "70 completed", "hub-0 x2", "done/s"] {
            assert!(screen.contains(part), "{part} in {screen}");
        }
    }

    #[test]
    fn q_quits() {
        let key = |c| Event::Key(KeyCode::Char(c).into());
        assert!(is_quit(&key('q')) && !is_quit(&key('x')));
    }
}
