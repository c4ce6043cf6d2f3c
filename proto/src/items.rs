//! The fixed layouts inside batch frames, little endian, packed one after the other.
//!
//! | item | layout |
//! |---|---|
//! | submit | payload length u32, extension length u16, extension, payload |
//! | assign | lease, lease duration u32 ms, payload length u32, extension length u16, extension, payload |
//! | complete | lease, result length u32, result |
//! | fail | lease, delay u32 ms (2^32-1: by policy), kind u8 (0 retryable, 1 permanent), text length u16, text |
//! | release | lease, delay u32 ms |
//! | renew | lease |
//! | progress | lease, value u16 (1/10,000; 65,535: none), note length u32, note |
//! | progressed | task u64, attempt u32, value u16, note length u32, note |
//! | task | task u64, state u8, attempt u32, payload length u32, payload |
//! | revoked | lease, reason u8 |
//! | refused | index u16, code u16, retry after u32 ms (0: none) |
//! | task id | u64 |
//!
//! A lease is task u64, attempt u32, epoch u32. Extensions are [`crate::messages::TaskOptions`] in MessagePack, or empty.

use crate::error::{Code, WireError};
use crate::ids::{Lease, TaskId, TaskState};

/// Longest extension of a task, bytes.
pub const EXT_BYTES_MAX: usize = 4096;
/// `Fail.delay_ms` that stands for the queue's policy.
pub const DELAY_BY_POLICY: u32 = u32::MAX;
/// `Progress.value` that stands for none.
pub const NO_VALUE: u16 = u16::MAX;

/// One item of a batch: knows how to read and write itself.
pub trait Item<'a>: Sized {
    /// Reads the item at the start of `r`. `None` if it is cut short or has a value that may not be.
    fn read(r: &mut Reader<'a>) -> Option<Self>;
    /// Appends the item.
    fn write(&self, out: &mut Vec<u8>);
}

/// Reads numbers and slices from the front of a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    /// Next byte.
    #[inline]
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|a| a[0])
    }
    /// Next u16.
    #[inline]
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    /// Next u32.
    #[inline]
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    /// Next u64.
    #[inline]
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    /// Next `n` bytes.
    #[inline]
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }
    #[inline]
    fn lease(&mut self) -> Option<Lease> {
        let a = self.array::<16>()?;
        let (task, rest) = a.split_first_chunk::<8>()?;
        let (attempt, epoch) = rest.split_first_chunk::<4>()?;
        Some(Lease {
            task: TaskId(u64::from_le_bytes(*task)),
            attempt: u32::from_le_bytes(*attempt),
            epoch: u32::from_le_bytes(epoch.try_into().ok()?),
        })
    }
}

#[inline]
fn put_lease(out: &mut Vec<u8>, l: Lease) {
    let mut b = [0_u8; 16];
    b[..8].copy_from_slice(&l.task.0.to_le_bytes());
    b[8..12].copy_from_slice(&l.attempt.to_le_bytes());
    b[12..].copy_from_slice(&l.epoch.to_le_bytes());
    out.extend_from_slice(&b);
}

/// The items of a batch frame. Stops at the first that does not fit; [`check`] tells beforehand.
#[derive(Clone, Debug)]
pub struct Items<'a, T> {
    reader: Reader<'a>,
    left: u16,
    item: std::marker::PhantomData<T>,
}

impl<'a, T: Item<'a>> Items<'a, T> {
    /// Over a payload that was checked.
    pub fn new(payload: &'a [u8], count: u16) -> Self {
        Self { reader: Reader(payload), left: count, item: std::marker::PhantomData }
    }
}

impl<'a, T: Item<'a>> Iterator for Items<'a, T> {
    type Item = T;
    #[inline]
    fn next(&mut self) -> Option<T> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        T::read(&mut self.reader)
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(usize::from(self.left)))
    }
}

/// Reads all items of a payload and gives an iterator over them, so that a batch is taken whole or not at all.
///
/// # Errors
/// `malformed_frame`, with the index of the item that does not fit.
#[inline]
pub fn check<'a, T: Item<'a>>(payload: &'a [u8], count: u16) -> Result<Items<'a, T>, WireError> {
    let mut r = Reader(payload);
    for i in 0..count {
        if T::read(&mut r).is_none() {
            let text = format!("item {i} of {count} is cut short or out of range");
            return Err(WireError::new(Code::MalformedFrame, text));
        }
    }
    if !r.0.is_empty() {
        let text = format!("{} bytes after the last of {count} items", r.0.len());
        return Err(WireError::new(Code::MalformedFrame, text));
    }
    Ok(Items::new(payload, count))
}

/// A task to submit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Submit<'a> {
    /// [`crate::messages::TaskOptions`] in MessagePack, or empty.
    pub ext: &'a [u8],
    /// What the worker gets.
    pub payload: &'a [u8],
}

impl<'a> Item<'a> for Submit<'a> {
    #[inline]
    fn read(r: &mut Reader<'a>) -> Option<Self> {
        let len = r.u32()? as usize;
        let ext_len = usize::from(r.u16()?);
        if ext_len > EXT_BYTES_MAX {
            return None;
        }
        Some(Self { ext: r.bytes(ext_len)?, payload: r.bytes(len)? })
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.ext.len() as u16).to_le_bytes());
        out.extend_from_slice(self.ext);
        out.extend_from_slice(self.payload);
    }
}

/// A task for a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Assign<'a> {
    /// What settles it.
    pub lease: Lease,
    /// Time until the lease expires unless renewed, milliseconds.
    pub lease_ms: u32,
    /// As submitted.
    pub ext: &'a [u8],
    /// As submitted.
    pub payload: &'a [u8],
}

impl<'a> Item<'a> for Assign<'a> {
    #[inline]
    fn read(r: &mut Reader<'a>) -> Option<Self> {
        let (lease, lease_ms, len, ext_len) =
            (r.lease()?, r.u32()?, r.u32()? as usize, usize::from(r.u16()?));
        Some(Self { lease, lease_ms, ext: r.bytes(ext_len)?, payload: r.bytes(len)? })
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        let mut b = [0_u8; 26];
        b[..8].copy_from_slice(&self.lease.task.0.to_le_bytes());
        b[8..12].copy_from_slice(&self.lease.attempt.to_le_bytes());
        b[12..16].copy_from_slice(&self.lease.epoch.to_le_bytes());
        b[16..20].copy_from_slice(&self.lease_ms.to_le_bytes());
        b[20..24].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        b[24..].copy_from_slice(&(self.ext.len() as u16).to_le_bytes());
        out.extend_from_slice(&b);
        out.extend_from_slice(self.ext);
        out.extend_from_slice(self.payload);
    }
}

/// A result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Complete<'a> {
    /// The lease that is settled.
    pub lease: Lease,
    /// What the submitter gets.
    pub result: &'a [u8],
}

impl<'a> Item<'a> for Complete<'a> {
    #[inline]
    fn read(r: &mut Reader<'a>) -> Option<Self> {
        let (lease, len) = (r.lease()?, r.u32()? as usize);
        Some(Self { lease, result: r.bytes(len)? })
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        put_lease(out, self.lease);
        out.extend_from_slice(&(self.result.len() as u32).to_le_bytes());
        out.extend_from_slice(self.result);
    }
}

/// A failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fail<'a> {
    /// The lease that is settled.
    pub lease: Lease,
    /// Milliseconds before the next attempt, or [`DELAY_BY_POLICY`].
    pub delay_ms: u32,
    /// No further attempt makes sense.
    pub permanent: bool,
    /// For people.
    pub error: &'a str,
}

impl<'a> Item<'a> for Fail<'a> {
    fn read(r: &mut Reader<'a>) -> Option<Self> {
        let (lease, delay_ms, kind, len) = (r.lease()?, r.u32()?, r.u8()?, usize::from(r.u16()?));
        let error = std::str::from_utf8(r.bytes(len)?).ok()?;
        (kind < 2).then_some(Self { lease, delay_ms, permanent: kind == 1, error })
    }
    fn write(&self, out: &mut Vec<u8>) {
        put_lease(out, self.lease);
        out.extend_from_slice(&self.delay_ms.to_le_bytes());
        out.push(u8::from(self.permanent));
        let mut cut = self.error.len().min(usize::from(u16::MAX));
        while !self.error.is_char_boundary(cut) {
            cut -= 1;
        }
        out.extend_from_slice(&(cut as u16).to_le_bytes());
        out.extend_from_slice(&self.error.as_bytes()[..cut]);
    }
}

/// A task given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Release {
    /// The lease that ends.
    pub lease: Lease,
    /// Milliseconds before the task may be assigned again.
    pub delay_ms: u32,
}

impl Item<'_> for Release {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        Some(Self { lease: r.lease()?, delay_ms: r.u32()? })
    }
    fn write(&self, out: &mut Vec<u8>) {
        put_lease(out, self.lease);
        out.extend_from_slice(&self.delay_ms.to_le_bytes());
    }
}

impl Item<'_> for Lease {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        r.lease()
    }
    fn write(&self, out: &mut Vec<u8>) {
        put_lease(out, *self);
    }
}

impl Item<'_> for TaskId {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        r.u64().map(TaskId)
    }
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }
}

/// How far a task is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress<'a> {
    /// A valid lease.
    pub lease: Lease,
    /// 0 to 10,000, or [`NO_VALUE`].
    pub value: u16,
    /// Opaque.
    pub note: &'a [u8],
}

impl<'a> Item<'a> for Progress<'a> {
    fn read(r: &mut Reader<'a>) -> Option<Self> {
        let (lease, value, len) = (r.lease()?, r.u16()?, r.u32()? as usize);
        let note = r.bytes(len)?;
        (value <= 10_000 || value == NO_VALUE).then_some(Self { lease, value, note })
    }
    fn write(&self, out: &mut Vec<u8>) {
        put_lease(out, self.lease);
        out.extend_from_slice(&self.value.to_le_bytes());
        out.extend_from_slice(&(self.note.len() as u32).to_le_bytes());
        out.extend_from_slice(self.note);
    }
}

/// Progress as the submitter sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progressed<'a> {
    /// The task.
    pub task: TaskId,
    /// The attempt that reports.
    pub attempt: u32,
    /// 0 to 10,000, or [`NO_VALUE`].
    pub value: u16,
    /// Opaque.
    pub note: &'a [u8],
}

impl<'a> Item<'a> for Progressed<'a> {
    fn read(r: &mut Reader<'a>) -> Option<Self> {
        let (task, attempt, value, len) = (TaskId(r.u64()?), r.u32()?, r.u16()?, r.u32()? as usize);
        Some(Self { task, attempt, value, note: r.bytes(len)? })
    }
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.task.0.to_le_bytes());
        out.extend_from_slice(&self.attempt.to_le_bytes());
        out.extend_from_slice(&self.value.to_le_bytes());
        out.extend_from_slice(&(self.note.len() as u32).to_le_bytes());
        out.extend_from_slice(self.note);
    }
}

/// A task's state and, once it has one, its outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Task<'a> {
    /// The task.
    pub task: TaskId,
    /// Where it stands.
    pub state: TaskState,
    /// Assignments so far.
    pub attempt: u32,
    /// Result if completed, last error if dead, else empty.
    pub payload: &'a [u8],
}

impl<'a> Item<'a> for Task<'a> {
    #[inline]
    fn read(r: &mut Reader<'a>) -> Option<Self> {
        let (task, state) = (TaskId(r.u64()?), TaskState::from_u8(r.u8()?)?);
        let (attempt, len) = (r.u32()?, r.u32()? as usize);
        Some(Self { task, state, attempt, payload: r.bytes(len)? })
    }
    #[inline]
    fn write(&self, out: &mut Vec<u8>) {
        let mut b = [0_u8; 17];
        b[..8].copy_from_slice(&self.task.0.to_le_bytes());
        b[8] = self.state as u8;
        b[9..13].copy_from_slice(&self.attempt.to_le_bytes());
        b[13..].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&b);
        out.extend_from_slice(self.payload);
    }
}

/// Why a lease is void.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum RevokeReason {
    /// It was not renewed in time.
    Expired = 0,
    /// The task was cancelled.
    Cancelled = 1,
    /// The dispatcher restarted.
    Restarted = 2,
}

/// A lease that is void; the worker should drop the task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Revoked {
    /// The void lease.
    pub lease: Lease,
    /// Why.
    pub reason: RevokeReason,
}

impl Item<'_> for Revoked {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        let lease = r.lease()?;
        let reason = match r.u8()? {
            0 => RevokeReason::Expired,
            1 => RevokeReason::Cancelled,
            2 => RevokeReason::Restarted,
            _ => return None,
        };
        Some(Self { lease, reason })
    }
    fn write(&self, out: &mut Vec<u8>) {
        put_lease(out, self.lease);
        out.push(self.reason as u8);
    }
}

/// An item of a batch that was refused; the others were taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Its place in the batch, from 0.
    pub index: u16,
    /// Why, see [`Code`].
    pub code: u16,
    /// When to try again, milliseconds; 0 where it makes no sense.
    pub retry_after_ms: u32,
}

impl Item<'_> for Refused {
    fn read(r: &mut Reader<'_>) -> Option<Self> {
        Some(Self { index: r.u16()?, code: r.u16()?, retry_after_ms: r.u32()? })
    }
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.code.to_le_bytes());
        out.extend_from_slice(&self.retry_after_ms.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Lease = Lease { task: TaskId(0x0102_0304_0506_0708), attempt: 9, epoch: 10 };

    fn round<'a, T: Item<'a> + PartialEq + std::fmt::Debug>(item: &T, buf: &'a mut Vec<u8>) {
        item.write(buf);
        let read: Vec<T> = check(buf, 1).expect("one").collect();
        assert_eq!(read, [T::read(&mut Reader(buf)).expect("one")]);
        assert_eq!(&read[0], item);
        for cut in 0..buf.len() {
            assert!(check::<T>(&buf[..cut], 1).is_err(), "cut at {cut}");
        }
        assert!(check::<T>(buf, 0).is_err());
    }

    #[test]
    fn items_round_trip_and_are_refused_when_cut() {
        round(&Submit { ext: b"e", payload: b"pay" }, &mut Vec::new());
        round(&Assign { lease: LEASE, lease_ms: 5, ext: b"e", payload: b"pay" }, &mut Vec::new());
        round(&Complete { lease: LEASE, result: b"r" }, &mut Vec::new());
        round(&Fail { lease: LEASE, delay_ms: 3, permanent: true, error: "no" }, &mut Vec::new());
        round(&Release { lease: LEASE, delay_ms: 3 }, &mut Vec::new());
        round(&LEASE, &mut Vec::new());
        round(&LEASE.task, &mut Vec::new());
        round(&Progress { lease: LEASE, value: 10_000, note: b"n" }, &mut Vec::new());
        round(&Progressed { task: LEASE.task, attempt: 1, value: NO_VALUE, note: b"n" }, &mut Vec::new());
        round(&Task { task: LEASE.task, state: TaskState::Dead, attempt: 2, payload: b"x" }, &mut Vec::new());
        for reason in [RevokeReason::Expired, RevokeReason::Cancelled, RevokeReason::Restarted] {
            round(&Revoked { lease: LEASE, reason }, &mut Vec::new());
        }
        round(&Refused { index: 1, code: 304, retry_after_ms: 7 }, &mut Vec::new());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let mut out = Vec::new();
        Progress { lease: LEASE, value: 10_001, note: b"" }.write(&mut out);
        assert!(check::<Progress<'_>>(&out, 1).is_err());
        let mut out = Vec::new();
        Submit { ext: &[0; EXT_BYTES_MAX + 1], payload: b"" }.write(&mut out);
        assert!(check::<Submit<'_>>(&out, 1).is_err());
        let mut out = Vec::new();
        Fail { lease: LEASE, delay_ms: 0, permanent: false, error: &"ä".repeat(40_000) }.write(&mut out);
        let f = check::<Fail<'_>>(&out, 1).expect("cut at a character").next().expect("one");
        assert_eq!(f.error.len(), 65_534);
        let mut out = Vec::new();
        Revoked { lease: LEASE, reason: RevokeReason::Expired }.write(&mut out);
        out[16] = 9;
        assert!(check::<Revoked>(&out, 1).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), n in 0_u16..20) {
            let _ = check::<Submit<'_>>(&bytes, n);
            let _ = check::<Assign<'_>>(&bytes, n);
            let _ = check::<Complete<'_>>(&bytes, n);
            let _ = check::<Fail<'_>>(&bytes, n);
            let _ = check::<Task<'_>>(&bytes, n);
            let _ = check::<Progress<'_>>(&bytes, n);
        }
    }
}
