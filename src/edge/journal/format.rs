//! The bytes of a segment. All numbers are little-endian.
//!
//! ```text
//!  segment header, 64 bytes                        record header, 32 bytes, then the body, then zeroes up to 8 bytes
//!   0 magic "HIVEJRNL"                              0 magic "HrEc"
//!   8 format version   u32                          4 length of the body          u32
//!  12 salt             u32                          8 crc                         u32
//!  16 first position   u64                         12 crc of the previous record  u32
//!  24 crc of the previous segment's last record    16 position                    u64
//!  28 epoch of that record u32                     24 epoch                       u32
//!  32 used before u8, 0 or 1, zeroes               28 operations                  u32
//!  60 crc of the 60 bytes before
//! ```
//!
//! Behind the last record are zeroes, or, in a file that was another segment before, what that has left there.
//!
//! The crc of a record is CRC-32C over its header without the crc itself, its body and its padding, and begins with the
//! salt. The salt is a secret of the journal: a client that puts bytes of a record into a payload cannot make them look like one. Each
//! segment's follows from that of the one before, so that records of an earlier life of the file are no records.

/// Length of a segment's header, bytes.
pub(super) const SEGMENT_HEADER: u64 = 64;
/// Length of a segment at most, bytes.
pub(super) const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Length of a record's header, bytes.
pub(super) const RECORD_HEADER: usize = 32;
/// Records begin at multiples of this.
pub(super) const ALIGN: u64 = 8;
/// The version written, and the last one read.
pub(super) const VERSION: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"HIVEJRNL";
const RECORD_MAGIC: [u8; 4] = *b"HrEc";

/// What a segment says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub(super) salt: u32,
    pub(super) first: u64,
    pub(super) prev: u32,
    pub(super) epoch: u32,
    /// The file was another segment before.
    pub(super) used: bool,
}

/// Why bytes are no header of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoSegment {
    /// Of a later version.
    Newer(u32),
    /// With a text that says why.
    Damaged(&'static str),
}

impl SegmentHeader {
    pub(super) fn encode(self) -> [u8; SEGMENT_HEADER as usize] {
        let mut b = [0; SEGMENT_HEADER as usize];
        b[..8].copy_from_slice(&SEGMENT_MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[12..16].copy_from_slice(&self.salt.to_le_bytes());
        b[16..24].copy_from_slice(&self.first.to_le_bytes());
        b[24..28].copy_from_slice(&self.prev.to_le_bytes());
        b[28..32].copy_from_slice(&self.epoch.to_le_bytes());
        b[32] = u8::from(self.used);
        let crc = crc32c::crc32c(&b[..60]);
        b[60..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    pub(super) fn decode(b: &[u8]) -> Result<Self, NoSegment> {
        if b.len() < SEGMENT_HEADER as usize {
            return Err(NoSegment::Damaged("shorter than the header of a segment"));
        }
        if b[..8] != SEGMENT_MAGIC {
            return Err(NoSegment::Damaged("not a segment of a journal"));
        }
        // Before the checksum, which a later version may have elsewhere.
        match u32_at(b, 8) {
            VERSION => {}
            version if version > VERSION => return Err(NoSegment::Newer(version)),
            _ => return Err(NoSegment::Damaged("the segment's version is not known")),
        }
        if crc32c::crc32c(&b[..60]) != u32_at(b, 60) {
            return Err(NoSegment::Damaged("the checksum of the segment's header does not hold"));
        }
        let (salt, first, prev, epoch) = (u32_at(b, 12), u64_at(b, 16), u32_at(b, 24), u32_at(b, 28));
        Ok(Self { salt, first, prev, epoch, used: b[32] == 1 })
    }

    /// The salt of the segment that begins with `first` behind one with `salt`.
    pub(super) fn salt_after(salt: u32, first: u64) -> u32 {
        crc32c::crc32c_append(salt, &first.to_le_bytes())
    }
}

/// Header of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) len: u32,
    pub(super) crc: u32,
    pub(super) prev: u32,
    pub(super) position: u64,
    pub(super) epoch: u32,
    pub(super) ops: u32,
}

impl Header {
    /// Fills in length and checksum for a body.
    pub(super) fn seal(mut self, salt: u32, body: &[u8]) -> Self {
        self.len = body.len() as u32;
        let crc = crc32c::crc32c_append(self.begin_crc(salt), body);
        self.crc = crc32c::crc32c_append(crc, padding(body.len()));
        self
    }

    /// The checksum so far: what the header adds to it.
    pub(super) fn begin_crc(&self, salt: u32) -> u32 {
        let b = self.encode();
        crc32c::crc32c_append(crc32c::crc32c_append(salt, &b[..8]), &b[12..])
    }

    pub(super) fn encode(&self) -> [u8; RECORD_HEADER] {
        let mut b = [0; RECORD_HEADER];
        b[..4].copy_from_slice(&RECORD_MAGIC);
        b[4..8].copy_from_slice(&self.len.to_le_bytes());
        b[8..12].copy_from_slice(&self.crc.to_le_bytes());
        b[12..16].copy_from_slice(&self.prev.to_le_bytes());
        b[16..24].copy_from_slice(&self.position.to_le_bytes());
        b[24..28].copy_from_slice(&self.epoch.to_le_bytes());
        b[28..].copy_from_slice(&self.ops.to_le_bytes());
        b
    }

    /// What the bytes say, nothing of it verified; `None` without the magic.
    pub(super) fn decode(b: &[u8]) -> Option<Self> {
        if b.len() < RECORD_HEADER || b[..4] != RECORD_MAGIC {
            return None;
        }
        Some(Self {
            len: u32_at(b, 4),
            crc: u32_at(b, 8),
            prev: u32_at(b, 12),
            position: u64_at(b, 16),
            epoch: u32_at(b, 24),
            ops: u32_at(b, 28),
        })
    }

    /// Bytes from this record to the next.
    pub(super) fn stride(&self) -> u64 {
        stride(self.len as usize)
    }
}

/// Bytes that a record with such a body takes.
pub(super) fn stride(body: usize) -> u64 {
    (RECORD_HEADER as u64 + body as u64).next_multiple_of(ALIGN)
}

/// The zeroes between a body and the next record.
pub(super) fn padding(body: usize) -> &'static [u8] {
    &[0; ALIGN as usize][..body.next_multiple_of(ALIGN as usize) - body]
}

/// Name of the segment that begins with a position.
pub(super) fn segment_name(first: u64) -> String {
    format!("{first:020}.seg")
}

/// Name of a file that was the segment which began with a position, and can become another one.
pub(super) fn spare_name(first: u64) -> String {
    format!("{first:020}{SPARE}")
}

/// How the name of such a file ends.
pub(super) const SPARE: &str = ".spare";

/// Positions end here: nobody gets so far, and one more is always a number.
const POSITION_MAX: u64 = u64::MAX / 2;

/// The position that a file's name of this kind (`.seg`, `.snap`) tells.
pub(super) fn position_in(name: &str, ending: &str) -> Option<u64> {
    let digits = name.strip_suffix(ending)?;
    let plain = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    let position = plain.then(|| digits.parse().ok())??;
    (1..=POSITION_MAX).contains(&position).then_some(position)
}

pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_sort_as_positions_do() {
        assert_eq!(segment_name(7), "00000000000000000007.seg");
        assert_eq!(position_in(&segment_name(u64::MAX / 2), ".seg"), Some(u64::MAX / 2));
        let none =
            [&segment_name(0), &segment_name(u64::MAX), "7.seg", "+0000000000000000007.seg", "lock", ".seg"];
        for other in none {
            assert_eq!(position_in(other, ".seg"), None, "{other}");
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let header = SegmentHeader { salt: 1, first: 2, prev: 3, epoch: 4, used: true };
        let good = header.encode();
        assert_eq!(SegmentHeader::decode(&good), Ok(header));
        for i in 0..good.len() {
            let mut bad = good;
            bad[i] ^= 1;
            assert!(SegmentHeader::decode(&bad).is_err(), "byte {i}");
        }
        let mut newer = good;
        newer[8] = 2;
        assert_eq!(SegmentHeader::decode(&newer), Err(NoSegment::Newer(2)));
        assert!(matches!(SegmentHeader::decode(&good[..63]), Err(NoSegment::Damaged(_))));
    }

    #[test]
    fn the_bytes_of_a_record_are_as_documented() {
        let header = Header { len: 0, crc: 0, prev: 5, position: 6, epoch: 7, ops: 8 }.seal(9, b"body!");
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(b"body!");
        bytes.extend_from_slice(padding(5));
        assert_eq!((bytes.len() as u64, header.stride()), (40, 40));
        assert_eq!(bytes[..8], *b"HrEc\x05\0\0\0");
        let without_crc = [&bytes[..8], &bytes[12..]].concat();
        assert_eq!(crc32c::crc32c_append(9, &without_crc), header.crc);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283, "CRC-32C as in RFC 3720");
    }

    proptest! {
        #[test]
        fn headers_come_back(len: u32, crc: u32, prev: u32, position: u64, epoch: u32, ops: u32) {
            let header = Header { len, crc, prev, position, epoch, ops };
            prop_assert_eq!(Header::decode(&header.encode()), Some(header));
        }
    }
}
