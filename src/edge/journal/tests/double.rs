//! A directory in memory that knows what is durable, forgets the rest when the power goes, and fails on demand.
//!
//! What was written and not synced is a list of changes. A crash keeps any part of it: none, all, some first ones, some sectors of some, the
//! beginning or the end of one. So it is at least as cruel as a disk: what a disk does is among the choices.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::super::files::{File, Files};
pub(super) use super::super::sim::Dice;

const SECTOR: usize = 512;

/// What a call changes, in the words of the trait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Write,
    SyncData,
    SetLen,
    Create,
    Rename,
    Remove,
    SyncDir,
}

/// A bug that is planted: a sync that says yes and does nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Planted {
    #[default]
    Nothing,
    NoSyncData,
    NoSyncDir,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Arc<[u8]>),
    Len(usize),
}

#[derive(Clone, Default, Debug)]
struct Node {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

/// A name that goes, and a name that comes with its file.
type Renaming = (Option<String>, Option<(String, usize)>);

type Hook = Box<dyn FnMut(Call, &Disk) + Send>;

#[derive(Default)]
pub(crate) struct Disk {
    nodes: Vec<Option<Node>>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending: Vec<Renaming>,
    /// Bytes that may still be taken; `None`: any number.
    pub(crate) space: Option<usize>,
    /// A write without space says so, and has arrived all the same.
    pub(crate) full_lies: bool,
    /// What a disk wants of writes past the page cache, multiples of so many bytes.
    pub(crate) block: Option<usize>,
    pub(crate) planted: Planted,
    /// The sync that fails, counted from the next one, 0.
    pub(crate) fail_sync: Option<usize>,
    pub(crate) syncs: usize,
    hook: Option<Hook>,
    locked: Arc<Mutex<bool>>,
}

impl Clone for Disk {
    /// A picture of it at this moment, without its hook and its faults.
    fn clone(&self) -> Self {
        Self {
            nodes: self.nodes.clone(),
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            pending: self.pending.clone(),
            space: self.space,
            ..Self::default()
        }
    }
}

impl Node {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Len(len) => bytes.resize(*len, 0),
            Change::Write(at, data) => write(bytes, *at, data),
        }
    }

    /// What is on the disk after the power went.
    fn crash(&self, dice: &mut Dice) -> Vec<u8> {
        let mut left = self.durable.clone();
        match dice.below(6) {
            0 => {}
            1 => self.pending.iter().for_each(|c| Self::apply(&mut left, c)),
            2 => self.tear(&mut left, dice),
            // In an order of its own.
            3 => {
                let mut order: Vec<&Change> = self.pending.iter().collect();
                while !order.is_empty() {
                    Self::apply(&mut left, order.swap_remove(dice.below(order.len())));
                }
            }
            _ => {
                for change in &self.pending {
                    self.some_sectors(&mut left, change, dice);
                }
            }
        }
        left
    }

    /// Some first changes, and the beginning or the end of the next.
    fn tear(&self, left: &mut Vec<u8>, dice: &mut Dice) {
        let whole = dice.below(self.pending.len() + 1);
        self.pending[..whole].iter().for_each(|c| Self::apply(left, c));
        if let Some(Change::Write(at, data)) = self.pending.get(whole) {
            let cut = dice.below(data.len() + 1);
            let (from, part) = if dice.below(2) == 0 { (0, &data[..cut]) } else { (cut, &data[cut..]) };
            write(left, at + from, part);
        }
    }

    fn some_sectors(&self, left: &mut Vec<u8>, change: &Change, dice: &mut Dice) {
        match change {
            Change::Len(_) if dice.below(2) == 0 => Self::apply(left, change),
            Change::Len(_) => {}
            Change::Write(at, data) => {
                let mut from = 0;
                while from < data.len() {
                    let to = ((at + from) / SECTOR * SECTOR + SECTOR - at).min(data.len());
                    if dice.below(2) == 0 {
                        write(left, at + from, &data[from..to]);
                    }
                    from = to;
                }
            }
        }
    }
}

fn write(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

fn rename(names: &mut BTreeMap<String, usize>, (goes, comes): &Renaming) {
    if let Some(name) = goes {
        names.remove(name);
    }
    names.extend(comes.clone());
}

impl Disk {
    /// The directory after the power went, and came back.
    pub(crate) fn crashed(&self, seed: u64) -> MemFiles {
        let mut dice = Dice(seed);
        let mut names = self.durable_names.clone();
        // A file system keeps the order of its renamings, or keeps any of them.
        let (in_order, kept) = (dice.below(2) == 0, dice.below(self.pending.len() + 1));
        for (i, change) in self.pending.iter().enumerate() {
            if if in_order { i < kept } else { dice.below(2) == 0 } {
                rename(&mut names, change);
            }
        }
        let node = |n: &Option<Node>, dice: &mut Dice| {
            let bytes = n.as_ref()?.crash(dice);
            Some(Node { live: bytes.clone(), durable: bytes, pending: Vec::new() })
        };
        let nodes = self.nodes.iter().map(|n| node(n, &mut dice)).collect();
        MemFiles::of(Self { nodes, durable_names: names.clone(), names, ..Self::default() })
    }

    fn node(&mut self, inode: usize) -> &mut Node {
        self.nodes[inode].as_mut().expect("an open file keeps its node")
    }

    fn renaming(&mut self, change: Renaming) {
        rename(&mut self.names, &change);
        self.pending.push(change);
    }

    fn take(&mut self, bytes: usize) -> io::Result<usize> {
        let Some(space) = &mut self.space else { return Ok(bytes) };
        if *space == 0 && bytes > 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let given = bytes.min(*space);
        *space -= given;
        Ok(given)
    }

    fn give(&mut self, bytes: usize) {
        if let Some(space) = &mut self.space {
            *space += bytes;
        }
    }

    /// Whether this sync fails.
    fn sync_fails(&mut self) -> bool {
        self.syncs += 1;
        let fails = self.fail_sync == Some(0);
        self.fail_sync = self.fail_sync.and_then(|n| n.checked_sub(1));
        fails
    }

    /// Nodes without a name are kept only while a name may come back. Their open files are never used again by the journal.
    fn sweep(&mut self) {
        let pending = self.pending.iter().filter_map(|(_, comes)| comes.as_ref().map(|(_, n)| *n));
        let used: Vec<usize> =
            self.names.values().chain(self.durable_names.values()).copied().chain(pending).collect();
        for inode in 0..self.nodes.len() {
            if !used.contains(&inode) {
                self.nodes[inode] = None;
            }
        }
    }
}

/// The directory.
#[derive(Clone)]
pub(crate) struct MemFiles(Arc<Mutex<Disk>>);

#[derive(Debug)]
pub(crate) struct MemFile {
    disk: MemFiles,
    inode: usize,
    /// Writes go past the page cache.
    direct: AtomicBool,
}

pub(crate) struct MemLock(Arc<Mutex<bool>>);

impl std::fmt::Debug for MemFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemFiles")
    }
}

impl Drop for MemLock {
    fn drop(&mut self) {
        *self.0.lock() = false;
    }
}

impl MemFiles {
    pub(crate) fn new() -> Self {
        Self::of(Disk::default())
    }

    fn of(disk: Disk) -> Self {
        Self(Arc::new(Mutex::new(disk)))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Disk) -> R) -> R {
        f(&mut self.0.lock())
    }

    /// Calls back after each call that changes something, with a picture of the disk.
    pub(crate) fn watch(&self, hook: impl FnMut(Call, &Disk) + Send + 'static) {
        self.with(|d| d.hook = Some(Box::new(hook)));
    }

    pub(crate) fn crashed(&self, seed: u64) -> Self {
        self.with(|d| d.crashed(seed))
    }

    /// Another directory with the same files, as they can be read.
    pub(crate) fn copy(&self) -> Self {
        Self::of(self.with(|d| d.clone()))
    }

    /// All files and their lengths.
    pub(crate) fn files(&self) -> Vec<(String, usize)> {
        self.with(|d| {
            d.names
                .iter()
                .map(|(n, i)| (n.clone(), d.nodes[*i].as_ref().map_or(0, |n| n.live.len())))
                .collect()
        })
    }

    /// Changes bytes behind everybody's back.
    pub(crate) fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        self.with(|d| {
            let inode = d.names[name];
            let node = d.node(inode);
            change(&mut node.live);
            node.durable = node.live.clone();
        });
    }

    /// Changes a range of bytes by xor.
    pub(crate) fn flip(&self, name: &str, range: Range<usize>, by: u8) {
        self.tamper(name, |bytes| bytes[range].iter_mut().for_each(|b| *b ^= by));
    }

    /// Adds a file.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let file = self.create(name).expect("space");
        file.write_at(&[IoSlice::new(bytes)], 0).expect("space");
        file.sync_data().expect("synced");
        self.sync_dir().expect("synced");
    }

    fn after(&self, call: Call) {
        let taken = self.with(|d| d.hook.take().map(|hook| (hook, d.clone())));
        if let Some((mut hook, picture)) = taken {
            hook(call, &picture);
            self.with(|d| d.hook = Some(hook));
        }
    }

    fn inode(&self, name: &str) -> io::Result<usize> {
        self.with(|d| d.names.get(name).copied()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn file(&self, inode: usize) -> MemFile {
        MemFile { disk: self.clone(), inode, direct: AtomicBool::new(false) }
    }
}

impl Files for MemFiles {
    type File = MemFile;
    type Lock = MemLock;

    fn place(&self, name: &str) -> String {
        format!("mem/{name}")
    }

    fn lock(&self) -> io::Result<MemLock> {
        let locked = self.with(|d| d.locked.clone());
        if std::mem::replace(&mut *locked.lock(), true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(MemLock(locked))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.with(|d| d.names.keys().cloned().collect()))
    }

    fn create(&self, name: &str) -> io::Result<MemFile> {
        let inode = self.with(|d| {
            d.nodes.push(Some(Node::default()));
            let inode = d.nodes.len() - 1;
            d.renaming((None, Some((name.to_owned(), inode))));
            inode
        });
        self.after(Call::Create);
        Ok(self.file(inode))
    }

    fn open(&self, name: &str) -> io::Result<MemFile> {
        Ok(self.file(self.inode(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let inode = self.inode(from)?;
        self.with(|d| d.renaming((Some(from.to_owned()), Some((to.to_owned(), inode)))));
        self.after(Call::Rename);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let inode = self.inode(name)?;
        self.with(|d| {
            let len = d.node(inode).live.len();
            d.give(len);
            d.renaming((Some(name.to_owned()), None));
        });
        self.after(Call::Remove);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let done = self.with(|d| {
            if d.sync_fails() {
                // A directory is the file system's own: it stops rather than forgetting. So what was pending stays pending.
                return Err(io::Error::from_raw_os_error(5));
            }
            if d.planted != Planted::NoSyncDir {
                d.durable_names = d.names.clone();
                d.pending.clear();
                d.sweep();
            }
            Ok(())
        });
        self.after(Call::SyncDir);
        done
    }
}

impl MemFile {
    /// Past the page cache everything is in blocks: places in memory, lengths, places in the file.
    fn judge(&self, numbers: impl IntoIterator<Item = usize>) -> io::Result<()> {
        let block = self.disk.with(|d| d.block).unwrap_or(4096);
        let direct = self.direct.load(Ordering::Relaxed);
        let bad = direct && numbers.into_iter().any(|n| n % block != 0);
        if bad { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }
}

impl File for MemFile {
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let places = parts.iter().filter(|p| !p.is_empty()).map(|p| p.as_ptr().addr());
        self.judge(places.chain(parts.iter().map(|p| p.len())).chain([offset as usize]))?;
        let data = parts.iter().flat_map(|p| p.iter().copied()).collect::<Vec<u8>>();
        let at = offset as usize;
        let written = self.disk.with(|d| {
            let old = d.node(self.inode).live.len();
            let grows = (at + data.len()).saturating_sub(old);
            let given = d.take(grows);
            let lies = d.full_lies && given.is_err();
            let written = data.len() - grows + given.as_ref().map_or(grows, |n| *n);
            if given.is_ok() || lies {
                let change = Change::Write(at, data[..written].into());
                let node = d.node(self.inode);
                Node::apply(&mut node.live, &change);
                node.pending.push(change);
            }
            given.map(|_| written)
        })?;
        self.disk.after(Call::Write);
        Ok(written)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.judge([buf.as_ptr().addr(), buf.len(), offset as usize])?;
        self.disk.with(|d| {
            let live = &d.node(self.inode).live;
            let from = &live[(offset as usize).min(live.len())..];
            let n = from.len().min(buf.len());
            buf[..n].copy_from_slice(&from[..n]);
            Ok(n)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let done = self.disk.with(|d| {
            let (fails, planted) = (d.sync_fails(), d.planted);
            let node = d.node(self.inode);
            if fails {
                // The pages are clean now, and only in memory.
                node.pending.clear();
                return Err(io::Error::from_raw_os_error(5));
            }
            if planted != Planted::NoSyncData {
                let mut durable = std::mem::take(&mut node.durable);
                node.pending.drain(..).for_each(|c| Node::apply(&mut durable, &c));
                node.durable = durable;
            }
            Ok(())
        });
        self.disk.after(Call::SyncData);
        done
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.with(|d| {
            let node = d.node(self.inode);
            let old = node.live.len();
            let change = Change::Len(len as usize);
            Node::apply(&mut node.live, &change);
            node.pending.push(change);
            d.give(old.saturating_sub(len as usize));
        });
        self.disk.after(Call::SetLen);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.with(|d| {
            let grows = (len as usize).saturating_sub(d.node(self.inode).live.len());
            if d.space.is_some_and(|space| space < grows) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            d.take(grows)?;
            let node = d.node(self.inode);
            node.live.resize((len as usize).max(node.live.len()), 0);
            Ok(())
        })
    }

    fn is_free(&self) -> bool {
        true
    }

    fn direct(&self, on: bool) -> bool {
        self.direct.store(on, Ordering::Relaxed);
        true
    }

    fn size(&self) -> io::Result<u64> {
        self.disk.with(|d| Ok(d.node(self.inode).live.len() as u64))
    }
}
