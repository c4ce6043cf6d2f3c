//! gearmand: foreground jobs; a worker keeps several grabs under way and sleeps when all were in vain.

use std::process::Command;

use anyhow::{Result, bail};

use super::{Clients, Durability, Job, Kind, Results, Role, Setup, System, Template};
use crate::measure::Tally;
use crate::run::{Client, Stamps};
use crate::server::{Server, find};

const FUNCTION: &[u8] = b"t";
const HEADER: usize = 12;
const CAN_DO: u32 = 1;
const PRE_SLEEP: u32 = 4;
const NOOP: u32 = 6;
const SUBMIT_JOB: u32 = 7;
const JOB_CREATED: u32 = 8;
const GRAB_JOB: u32 = 9;
const NO_JOB: u32 = 10;
const JOB_ASSIGN: u32 = 11;
const WORK_COMPLETE: u32 = 13;
const ECHO_REQ: u32 = 16;
const ECHO_RES: u32 = 17;
const ERROR: u32 = 19;
/// Grabs that a worker keeps under way at most.
const GRABS_MAX: usize = 256;

pub(crate) struct Gearman;

impl System for Gearman {
    fn refuses(&self, kind: Kind, durability: Durability) -> Option<&'static str> {
        match (kind, durability) {
            (Kind::PubSub, _) => Some("gearman has no publish/subscribe"),
            (_, Durability::Journal) => Some("foreground jobs of gearman are never written to disk"),
            _ => None,
        }
    }

    fn start(&self, setup: &Setup) -> Result<Server> {
        let program = find("gearmand")?;
        Server::start(setup.place()?, |port, dir| {
            let mut c = Command::new(&program);
            c.args(["-L", "127.0.0.1", "-p", &port.to_string(), "-l", "none", "-b", "1024", "-t", "1"]);
            c.arg("-P").arg(dir.join("pid"));
            c
        })
    }

    fn clients(&self, job: &Job) -> Clients {
        let grabs = (job.in_flight / job.consumers.max(1)).clamp(1, GRABS_MAX);
        let workers = (0..job.consumers).map(|_| {
            let part =
                Part::Worker { results: Results::new(job.result_size), grabs, under_way: 0, found: false };
            (Role::Receiver, Box::new(GearmanClient { part, ready: false }) as Box<dyn Client>)
        });
        let submitters = (0..job.producers).map(|i| {
            let body = FUNCTION.len() + 2 + job.size;
            let before = [&header(SUBMIT_JOB, body)[..], FUNCTION, b"\0\0"].concat();
            let part = Part::Submitter(Template::new(&before, job.size, i, b""));
            (Role::Producer, Box::new(GearmanClient { part, ready: false }) as Box<dyn Client>)
        });
        workers.chain(submitters).collect()
    }

    fn idle(&self) -> Box<dyn Client> {
        Box::new(GearmanClient { part: Part::Submitter(Template::new(b"", 16, 0, b"")), ready: false })
    }
}

fn header(kind: u32, body: usize) -> [u8; HEADER] {
    let mut b = *b"\0REQ\0\0\0\0\0\0\0\0";
    b[4..8].copy_from_slice(&kind.to_be_bytes());
    b[8..].copy_from_slice(&(body as u32).to_be_bytes());
    b
}

/// The packet at the start of `input`: its type, its body, its length.
#[inline]
fn packet(input: &[u8]) -> Result<Option<(u32, &[u8], usize)>> {
    let Some(head) = input.first_chunk::<HEADER>() else { return Ok(None) };
    if head[..4] != *b"\0RES" {
        bail!("gearmand sent something else than a packet");
    }
    let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let end = HEADER + number(8) as usize;
    Ok(input.get(HEADER..end).map(|body| (number(4), body, end)))
}

enum Part {
    Submitter(Template),
    Worker { results: Results, grabs: usize, under_way: usize, found: bool },
}

struct GearmanClient {
    part: Part,
    ready: bool,
}

impl GearmanClient {
    fn take(&mut self, kind: u32, body: &[u8], out: &mut Vec<u8>, tally: &mut Tally) -> Result<()> {
        match (&mut self.part, kind) {
            (Part::Submitter(_), JOB_CREATED) => tally.accept(1),
            (Part::Submitter(_), WORK_COMPLETE) => match memchr::memchr(0, body) {
                Some(nul) => tally.done(&body[nul + 1..]),
                None => bail!("a result without a handle"),
            },
            (Part::Worker { results, under_way, found, .. }, JOB_ASSIGN) => {
                let mut nuls = memchr::memchr_iter(0, body);
                let (Some(first), Some(second)) = (nuls.next(), nuls.next()) else {
                    bail!("a job without a handle")
                };
                let payload = &body[second + 1..];
                tally.assigned(payload);
                (*under_way, *found) = (*under_way - 1, true);
                out.extend_from_slice(&header(WORK_COMPLETE, first + 1 + results.len()));
                out.extend_from_slice(&body[..=first]);
                out.extend_from_slice(results.of(payload));
            }
            (Part::Worker { under_way, .. }, NO_JOB) => *under_way -= 1,
            (Part::Worker { found, .. }, NOOP) => *found = true,
            (_, ECHO_RES) => self.ready = true,
            (_, ERROR) => bail!("gearmand: {}", String::from_utf8_lossy(body)),
            _ => {}
        }
        Ok(())
    }
}

impl Client for GearmanClient {
    fn hello(&mut self, out: &mut Vec<u8>) {
        if let Part::Worker { .. } = self.part {
            out.extend_from_slice(&header(CAN_DO, FUNCTION.len()));
            out.extend_from_slice(FUNCTION);
            out.extend_from_slice(&header(PRE_SLEEP, 0));
        }
        out.extend_from_slice(&header(ECHO_REQ, 0));
    }

    fn receive(&mut self, input: &[u8], out: &mut Vec<u8>, tally: &mut Tally) -> Result<usize> {
        let mut at = 0;
        while let Some((kind, body, n)) = packet(&input[at..])? {
            at += n;
            self.take(kind, body, out, tally)?;
        }
        if let Part::Worker { grabs, under_way, found, .. } = &mut self.part {
            if *found {
                // Only as long as grabbing finds something: a grab in vain costs the server as much as a job.
                *found = false;
                for _ in *under_way..*grabs {
                    out.extend_from_slice(&header(GRAB_JOB, 0));
                }
                *under_way = *grabs;
            } else if *under_way == 0 && at > 0 {
                out.extend_from_slice(&header(PRE_SLEEP, 0));
            }
        }
        Ok(at)
    }

    fn ready(&self) -> bool {
        self.ready
    }

    fn produce(&mut self, stamps: Stamps, out: &mut Vec<u8>) {
        if let Part::Submitter(template) = &self.part {
            stamps.for_each(|s| template.write(s, out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{split_everywhere, stamps};
    use super::*;

    fn response(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut b = [&header(kind, body.len())[..], body].concat();
        b[1..4].copy_from_slice(b"RES");
        b
    }

    fn clients() -> Clients {
        Gearman.clients(&Job {
            kind: Kind::Task,
            producers: 1,
            consumers: 1,
            size: 16,
            result_size: 64,
            in_flight: 2,
        })
    }

    #[test]
    fn a_worker_grabs_completes_and_sleeps() {
        let mut job = b"H:x:1\0t\0".to_vec();
        Template::new(b"", 16, 0, b"").write(9, &mut job);
        let input =
            [response(NOOP, b""), response(JOB_ASSIGN, &job), response(NO_JOB, b""), response(NO_JOB, b"")];
        let mut worker = clients().remove(0).1;
        let (mut out, mut tally) = (Vec::new(), Tally::new());
        worker.receive(&input[0], &mut out, &mut tally).expect("noop");
        assert_eq!(out, [header(GRAB_JOB, 0), header(GRAB_JOB, 0)].concat());
        out.clear();
        worker.receive(&input[1], &mut out, &mut tally).expect("job");
        assert_eq!(out.len(), HEADER + 6 + 64 + HEADER);
        assert!(out.starts_with(&header(WORK_COMPLETE, 70)) && out.ends_with(&header(GRAB_JOB, 0)));
        out.clear();
        worker.receive(&input[2..].concat(), &mut out, &mut tally).expect("none");
        assert_eq!((out, tally.assigned.count()), (header(PRE_SLEEP, 0).to_vec(), 1));
    }

    #[test]
    fn results_survive_any_split() {
        let mut body = b"H:x:1\0".to_vec();
        Template::new(b"", 64, 0, b"").write(9, &mut body);
        let input = [response(JOB_CREATED, b"H:x:1"), response(WORK_COMPLETE, &body)].concat();
        let (_, mut tally) = split_everywhere(&input, || clients().remove(1).1);
        assert_eq!((tally.accepted, tally.done.count()), (1, 1));
        assert!(Gearman.idle().receive(&[1; 12], &mut Vec::new(), &mut Tally::new()).is_err());
    }

    #[test]
    fn a_submission_is_one_packet() {
        let mut out = Vec::new();
        clients()[1].1.produce(stamps(1), &mut out);
        assert!(out.starts_with(&header(SUBMIT_JOB, 19)) && out.len() == HEADER + 19);
    }
}
