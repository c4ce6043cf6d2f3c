//! What is written is read back; what was not written is refused.

use proptest::prelude::*;

use super::super::ops::{Decision, Ops, Sealed, Whole, read};
use super::super::spill::Run;
use super::*;

/// A decision, owned.
#[derive(Clone, PartialEq, Debug)]
enum Said {
    Epoch(u32),
    Lane(u32, String, Vec<String>),
    Submit(u32, u64, Option<Tick>, Vec<u8>, Vec<u8>),
    Complete(u32, u64, u64, u32, Vec<u8>),
    Retry(u64, u32, u16, Option<Tick>, String),
    Bury(u64, u32, u16, String),
    Cancel(u64),
    Redrive(u64),
    Purge(u64),
    Task(u32, u64, TaskState, u16, Tick, String, Vec<u8>, u64),
    Outcomes(u32, u64, u64, Tick, Vec<u64>),
    Count(u32, u64),
    Spilled(u32, u64, Vec<u8>, Vec<u8>),
    Bits(u32, u64, u64),
    Run(u32, Run),
}

fn write(ops: &mut Ops, said: &Said) {
    match said {
        Said::Epoch(epoch) => ops.epoch(*epoch),
        Said::Lane(lane, queue, labels) => ops.lane(*lane, queue, labels),
        Said::Submit(lane, seq, None, ext, payload) => {
            ops.submit(*lane, *lane + 1, *seq, ext, payload, false);
        }
        Said::Spilled(lane, seq, ext, payload) => ops.submit(*lane, *lane + 1, *seq, ext, payload, true),
        Said::Bits(lane, page, mask) => ops.bits(((*page, *lane, 8), *mask)),
        Said::Run(lane, run) => ops.run(*lane, *run),
        Said::Submit(lane, seq, Some(due), ext, payload) => {
            ops.later(*lane, *lane + 1, *seq, *due, ext, payload);
        }
        Said::Complete(lane, n, seq, attempt, result) => ops.complete(*lane, *n - 1, *seq, *attempt, result),
        Said::Retry(seq, attempt, failed, due, error) => ops.retry(*seq, *attempt, *failed, *due, error),
        Said::Bury(seq, attempt, failed, error) => ops.bury(*seq, *attempt, *failed, error),
        Said::Cancel(seq) => ops.cancel(*seq),
        Said::Redrive(seq) => ops.redrive(*seq),
        Said::Purge(seq) => ops.purge(*seq),
        Said::Count(lane, completed) => ops.count(*lane, *completed),
        Said::Outcomes(lane, page, mask, until, records) => {
            ops.outcomes(*lane, *page, *mask, *until, records.iter().copied());
        }
        Said::Task(lane, seq, state, n, time, error, bytes, record) => ops.task(&Whole {
            lane: *lane,
            watcher: 9,
            seq: *seq,
            state: *state,
            attempt: u32::from(*n),
            failed: *n,
            attempts_max: *n,
            time: *time,
            error,
            ext_len: bytes.len() as u16,
            fetched: *n % 2 == 1,
            bytes,
            record: *record,
        }),
    }
}

fn owned(d: Decision<'_>) -> Said {
    match d {
        Decision::Epoch(epoch) => Said::Epoch(epoch),
        Decision::Lane { lane, queue, labels } => {
            Said::Lane(lane, queue.into(), labels.iter().map(Into::into).collect())
        }
        Decision::Submit { lane, watcher, seq, due, spilled, ext, payload } => {
            assert_eq!(watcher, lane + 1);
            match spilled {
                true => Said::Spilled(lane, seq, ext.into(), payload.into()),
                false => Said::Submit(lane, seq, due, ext.into(), payload.into()),
            }
        }
        Decision::Bits { lane, watcher, page, mask } => {
            assert_eq!(watcher, 8);
            Said::Bits(lane, page, mask)
        }
        Decision::Run { lane, run } => Said::Run(lane, run),
        Decision::Outcomes { lane, page, mask, until, records } => {
            let all: Vec<u64> = records.of(mask.count_ones() as usize).collect();
            Said::Outcomes(lane, page, mask, until, all)
        }
        Decision::Complete { lane, completed, seq, attempt, result } => {
            Said::Complete(lane, completed, seq, attempt, result.into())
        }
        Decision::Retry { seq, attempt, failed, due, error } => {
            Said::Retry(seq, attempt, failed, due, error.into())
        }
        Decision::Bury { seq, attempt, failed, error } => Said::Bury(seq, attempt, failed, error.into()),
        Decision::Cancel { seq } => Said::Cancel(seq),
        Decision::Redrive { seq } => Said::Redrive(seq),
        Decision::Purge { seq } => Said::Purge(seq),
        Decision::Count { lane, completed } => Said::Count(lane, completed),
        Decision::Task(w) => {
            assert_eq!(w.fetched, w.failed % 2 == 1);
            assert_eq!(
                (w.attempt, w.attempts_max, usize::from(w.ext_len)),
                (u32::from(w.failed), w.failed, w.bytes.len())
            );
            Said::Task(w.lane, w.seq, w.state, w.failed, w.time, w.error.into(), w.bytes.into(), w.record)
        }
    }
}

fn decisions() -> impl Strategy<Value = Vec<Said>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..20);
    let time = || prop::option::of((1..u64::MAX).prop_map(Tick));
    // Few numbers, so that groups go on and sequences follow each other.
    let (seq, lane) = (|| prop_oneof![5 => 1000..1010_u64, 1 => any::<u64>()], || 0..3_u32);
    let one = prop_oneof![
        any::<u32>().prop_map(Said::Epoch),
        (any::<u32>(), "[a-z]{1,9}", prop::collection::vec("[a-z]{1,5}", 0..4))
            .prop_map(|(l, q, n)| Said::Lane(l, q, n)),
        (lane(), seq(), time(), bytes(), bytes()).prop_map(|(l, s, t, e, p)| Said::Submit(
            l,
            s.max(1),
            t,
            e,
            p
        )),
        (lane(), seq(), bytes(), bytes()).prop_map(|(l, s, e, p)| Said::Spilled(l, s.max(1), e, p)),
        (lane(), any::<u64>(), any::<u64>()).prop_map(|(l, page, mask)| Said::Bits(l, page, mask)),
        (lane(), any::<(u32, u8)>(), any::<(u32, u8)>(), any::<usize>()).prop_map(|(l, r, s, bytes)| {
            let to = |(first, more): (u32, u8)| (u64::from(first), u64::from(first) + u64::from(more));
            Said::Run(l, Run { records: to(r), seqs: to(s), bytes, left: bytes as u64 / 7 })
        }),
        (lane(), 1..3_u64, seq(), any::<u32>(), bytes())
            .prop_map(|(l, n, s, a, r)| Said::Complete(l, n, s, a, r)),
        (seq(), any::<u32>(), any::<u16>(), time(), ".{0,9}")
            .prop_map(|(s, a, f, t, e)| Said::Retry(s, a, f, t, e)),
        (seq(), any::<u32>(), any::<u16>(), ".{0,9}").prop_map(|(s, a, f, e)| Said::Bury(s, a, f, e)),
        seq().prop_map(Said::Cancel),
        seq().prop_map(Said::Redrive),
        seq().prop_map(Said::Purge),
        (any::<u32>(), any::<u64>()).prop_map(|(l, n)| Said::Count(l, n)),
        (lane(), any::<u64>(), 1..=u64::MAX, any::<u64>(), any::<u64>()).prop_map(|(l, page, mask, t, r)| {
            let records = (0..u64::from(mask.count_ones())).map(|n| r.wrapping_mul(n | 1)).collect();
            Said::Outcomes(l, page, mask, Tick(t), records)
        }),
        (lane(), seq(), 0..8_u8, any::<u16>(), any::<u64>(), ".{0,9}", bytes(), 0..3_u64).prop_map(
            |(l, s, state, n, t, e, b, r)| {
                Said::Task(l, s, TaskState::from_u8(state).unwrap(), n, Tick(t), e, b, r)
            }
        ),
    ];
    // Several of a kind in a row.
    let runs = prop::collection::vec((one, 1..4_u64), 0..20);
    runs.prop_map(|runs| runs.into_iter().flat_map(|(said, n)| (0..n).map(move |i| next(&said, i))).collect())
}

fn next(said: &Said, i: u64) -> Said {
    match said.clone() {
        Said::Submit(lane, seq, due, ext, payload) => {
            Said::Submit(lane, seq.saturating_add(i), due, ext, payload)
        }
        Said::Spilled(lane, seq, ext, payload) => Said::Spilled(lane, seq.saturating_add(i), ext, payload),
        Said::Complete(lane, n, seq, attempt, result) => {
            Said::Complete(lane, n + i, seq.saturating_add(i), attempt, result)
        }
        other => other,
    }
}

proptest! {
    #[test]
    fn decisions_are_read_as_they_were_written(all in decisions()) {
        let mut ops = Ops::new(1 << 23);
        all.iter().for_each(|said| write(&mut ops, said));
        let mut records = ops.seal(Tick(77), Vec::new());
        prop_assert!(ops.is_empty() && ops.bytes() == 0);
        let Some(Sealed { body, ops: count, .. }) = records.pop_front() else {
            prop_assert!(all.is_empty());
            return Ok(());
        };
        prop_assert_eq!((count as usize, records.len()), (all.len(), 0));
        let mut seen = Vec::new();
        read(&body, |time, d| {
            assert_eq!(time, Tick(77));
            seen.push(owned(d));
            Some(())
        }).unwrap();
        prop_assert_eq!(seen, all);
        // Cut anywhere it is refused, or ends between two groups.
        for end in 0..body.len() {
            let mut few = 0;
            let whole = read(&body[..end], |_, _| { few += 1; Some(()) });
            prop_assert!(whole.is_err() || few < count);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_make_sense(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&body, |_, _| Some(()));
    }
}

#[test]
fn a_cycle_takes_few_bytes_besides_its_payload() {
    let mut ops = Ops::new(1 << 23);
    let (n, first) = (100, 1_764_000_000_000_000);
    (0..n).for_each(|i| ops.submit(3, 7, first + i, &[], &[7; 256], false));
    (0..n).for_each(|i| ops.complete(3, 50 + i, first + i, 1, &[7; 64]));
    let body = &ops.seal(Tick(1), Vec::new())[0].body;
    let each = body.len() as f64 / n as f64 - 256.0 - 64.0;
    assert!(each < 8.0, "{each} bytes besides payload and result");
}

#[test]
fn what_is_too_long_for_one_record_goes_into_several() {
    let (mut ops, payload) = (Ops::new(1 << 23), vec![7; 100_000]);
    (0..400).for_each(|i| ops.submit(1, 2, 1_000 + i, &[], &payload, false));
    (0..400).for_each(|i| ops.complete(1, 7 + i, 1_000 + i, 1, &payload));
    let records = ops.seal(Tick(5), Vec::new());
    assert!(records.len() > 4 && records.iter().all(|r| r.body.len() < 9_000_000));
    let mut seen = Vec::new();
    for Sealed { body, ops: count, .. } in &records {
        let before = seen.len();
        read(body, |time, d| {
            assert_eq!(time, Tick(5));
            seen.push(owned(d));
            Some(())
        })
        .unwrap();
        assert_eq!(seen.len() - before, *count as usize);
    }
    let expected = (0..800).map(|i| match i {
        0..400 => Said::Submit(1, 1_000 + i, None, vec![], payload.clone()),
        _ => Said::Complete(1, i - 392, 600 + i, 1, payload.clone()),
    });
    assert!(seen.into_iter().eq(expected));
}
