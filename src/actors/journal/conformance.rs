//! What every journal must do, whatever it is made of. Each implementation runs [`all`] on stores of its own.

use super::*;

/// Something that holds one journal and can open it again.
pub(crate) trait Store {
    type Journal: Journal;

    /// Opens the journal that is there, after whoever had it is gone. `start` is the snapshot's position.
    fn open(&mut self, start: Position) -> Self::Journal;
}

/// The whole suite. `fresh` gives a new, empty store.
pub(crate) fn all<S: Store>(mut fresh: impl FnMut() -> S) {
    what_is_acknowledged_is_there(&mut fresh());
    the_latest_fence_rules(&mut fresh());
    readers_follow_and_go_back(&mut fresh());
    limits_hold(&mut fresh());
    segments_go_as_a_whole(&mut fresh());
    nothing_in_doubt_is_lost(&mut fresh());
}

fn body(i: u64) -> Vec<u8> {
    let len = (i * 37 % 400) as usize;
    i.to_le_bytes().iter().copied().cycle().take(len).collect()
}

/// Appends until it is in, as a caller would.
pub(crate) fn surely<W: Writer>(writer: &mut W, body: &[u8], ops: u32) -> Position {
    for _ in 0..1000 {
        match writer.append(body, ops) {
            Ok(position) => return position,
            Err(AppendError::NotSent | AppendError::Full) => {}
            Err(AppendError::Unknown) => match resolve(writer) {
                Resolved::Landed(position) => return position,
                Resolved::Lost => {}
            },
            Err(e) => panic!("{e}"),
        }
    }
    panic!("never in");
}

/// Resolves until it is known.
pub(crate) fn resolve<W: Writer>(writer: &mut W) -> Resolved {
    for _ in 0..1000 {
        match writer.resolve() {
            Ok(resolved) => return resolved,
            Err(AppendError::Unknown | AppendError::NotSent) => {}
            Err(e) => panic!("{e}"),
        }
    }
    panic!("never known");
}

/// All records after a position.
pub(crate) fn read_all<R: Reader>(reader: &mut R, mut after: Position) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some(record) = reader.next(&mut after).expect("readable") {
        assert_eq!(record.position, after);
        records.push(record);
    }
    records
}

/// The callers' records: what the journal adds of its own is left out.
pub(crate) fn bodies(records: &[Record]) -> Vec<Bytes> {
    records.iter().filter(|r| r.ops > 0).map(|r| r.body.clone()).collect()
}

fn what_is_acknowledged_is_there<S: Store>(store: &mut S) {
    let mut expected = Vec::new();
    for epoch in 1..4 {
        let mut journal = store.open(Position::NONE);
        let records = read_all(&mut journal.reader(), Position::NONE);
        assert_eq!(bodies(&records), expected, "after {} starts", epoch - 1);
        let (mut writer, fence) = journal.fence(epoch, "node").expect("fenced");
        assert_eq!((writer.last(), journal.reader().last()), (fence, fence));
        let mut last = fence;
        for i in 0..200 {
            let position = surely(&mut writer, &body(i), 1 + i as u32);
            assert!(position > last, "positions ascend");
            // A barrier may have come behind it.
            assert!(writer.last() >= position);
            last = position;
            expected.push(Bytes::from(body(i)));
        }
        let records = read_all(&mut journal.reader(), fence);
        assert!(records.iter().all(|r| r.epoch == epoch));
        let own: Vec<u32> = records.iter().map(|r| r.ops).filter(|ops| *ops > 0).collect();
        assert_eq!(own, (1..=200).collect::<Vec<_>>());
    }
}

fn the_latest_fence_rules<S: Store>(store: &mut S) {
    let mut journal = store.open(Position::NONE);
    assert_eq!((journal.epoch(), journal.reader().last()), (0, Position::NONE));
    let (mut old, _) = journal.fence(3, "a").expect("fenced");
    surely(&mut old, b"old", 1);
    for stale in [0, 2, 3] {
        let e = journal.fence(stale, "b").err().expect("stale");
        assert!(matches!(e, OpenError::Stale { asked, rules: 3 } if asked == stale), "{e}");
    }
    surely(&mut old, b"still the one", 1);
    let (mut new, fence) = journal.fence(5, "b").expect("fenced");
    let record = journal.reader().get(fence).expect("the fence is a record");
    assert_eq!((record.epoch, record.ops), (5, 0));
    assert_eq!(old.append(b"too late", 1), Err(AppendError::Fenced(5)));
    assert_eq!(old.resolve(), Err(AppendError::Fenced(5)));
    let first = journal.reader().last();
    assert_eq!(first, fence, "a fenced writer leaves nothing");
    surely(&mut new, b"new", 1);
    drop((old, new));
    drop(journal);
    let mut journal = store.open(Position::NONE);
    assert_eq!(journal.epoch(), 5);
    assert!(matches!(journal.fence(5, "c"), Err(OpenError::Stale { asked: 5, rules: 5 })), "remembered");
    let records = bodies(&read_all(&mut journal.reader(), Position::NONE));
    assert_eq!(records, ["old".as_bytes(), b"still the one", b"new"]);
}

fn readers_follow_and_go_back<S: Store>(store: &mut S) {
    let mut journal = store.open(Position::NONE);
    let (mut writer, fence) = journal.fence(1, "a").expect("fenced");
    let mut reader = journal.reader();
    let mut after = fence;
    assert_eq!(reader.next(&mut after).expect("readable"), None);
    assert!(
        matches!(reader.get(fence.next()), Err(ReadError::NotYet { asked, last }) if asked == fence.next() && last == fence)
    );
    let mut positions = Vec::new();
    for i in 0..300 {
        positions.push(surely(&mut writer, &body(i), 1));
        if i % 7 == 0 {
            // Barriers may stand between.
            let own = read_all(&mut reader, after).into_iter().rfind(|r| r.ops > 0).expect("there");
            after = own.position;
            assert_eq!((own.position, &own.body[..]), (positions[i as usize], &body(i)[..]));
        }
    }
    let mut other = reader.clone();
    let everywhere = std::thread::spawn(move || {
        for i in (0..300).rev().chain((0..300).map(|i| i * 97 % 300)) {
            let record = other.get(positions[i]).expect("there");
            assert_eq!((record.position, &record.body[..]), (positions[i], &body(i as u64)[..]));
        }
    });
    for i in 300..600 {
        surely(&mut writer, &body(i), 1);
    }
    everywhere.join().expect("the other thread has read what it should");
    assert!(matches!(reader.get(Position::NONE), Err(ReadError::Gone(_))));
}

fn limits_hold<S: Store>(store: &mut S) {
    let mut journal = store.open(Position::NONE);
    let (mut writer, fence) = journal.fence(1, &"n".repeat(10_000)).expect("fenced");
    let bytes_max = writer.batch_bytes_max();
    let largest = vec![7; bytes_max];
    let position = surely(&mut writer, &largest, u32::MAX);
    let empty = surely(&mut writer, b"", 1);
    for (body, ops) in [(vec![7; bytes_max + 1], 1), (b"x".to_vec(), 0)] {
        let invalid = AppendError::Invalid { bytes: body.len(), ops, bytes_max };
        assert_eq!(writer.append(&body, ops), Err(invalid));
    }
    surely(&mut writer, &largest, 1);
    drop(writer);
    drop(journal);
    let mut reader = store.open(Position::NONE).reader();
    let record = reader.get(position).expect("there");
    assert!(record.body == largest && record.ops == u32::MAX);
    assert_eq!(reader.get(empty).expect("there").body.len(), 0);
    assert!(reader.get(fence).expect("there").body.len() <= 10_000);
}

fn segments_go_as_a_whole<S: Store>(store: &mut S) {
    let mut journal = store.open(Position::NONE);
    let (mut writer, _) = journal.fence(1, "a").expect("fenced");
    let mut reader = journal.reader();
    while writer.segments().len() < 5 {
        surely(&mut writer, &[5; 300], 1);
    }
    let segments = writer.segments();
    assert!(segments.windows(2).all(|w| w[0].last.next() == w[1].first && w[0].sealed), "{segments:?}");
    let open = segments[4];
    assert!(
        !open.sealed && matches!(writer.remove(open.first), Err(RemoveError::Open(at)) if at == open.first)
    );
    assert!(matches!(writer.remove(segments[1].last), Err(RemoveError::Unknown(_))));
    // One in the middle may go before an older one: somebody may still need that.
    for gone in [segments[1], segments[0]] {
        writer.remove(gone.first).expect("removed");
        for at in [gone.first, gone.last] {
            assert!(matches!(reader.get(at), Err(ReadError::Gone(p)) if p == at));
        }
    }
    assert_eq!(writer.segments().first(), Some(&segments[2]));
    assert!(reader.get(segments[2].first).is_ok());
    let last = surely(&mut writer, b"the end", 1);
    drop((writer, reader));
    drop(journal);
    let journal = store.open(segments[1].last);
    let mut reader = journal.reader();
    let records = read_all(&mut reader, segments[1].last);
    assert_eq!(records[0].position, segments[2].first);
    assert_eq!(records.iter().rfind(|r| r.ops > 0).map(|r| r.position), Some(last));
    assert!(matches!(reader.get(segments[1].last), Err(ReadError::Gone(_))));
}

fn nothing_in_doubt_is_lost<S: Store>(store: &mut S) {
    let mut journal = store.open(Position::NONE);
    let (mut writer, _) = journal.fence(1, "a").expect("fenced");
    assert_eq!(resolve(&mut writer), Resolved::Lost);
    let at = surely(&mut writer, b"x", 1);
    assert_eq!(journal.reader().get(at).expect("there").body, "x");
}
