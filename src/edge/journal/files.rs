//! What the journal needs of a directory. A trait, so that tests can pull the plug between any two calls.

use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

/// Names that are listed at most; a directory with more is not a journal's.
const NAMES_MAX: usize = 1 << 20;

/// One directory, flat.
pub trait Files: Clone + Send + Sync + 'static {
    /// An open file.
    type File: File;
    /// Keeps other processes out until it is dropped.
    type Lock: Send + Sync + 'static;

    /// The path of a name, for messages; of the directory if the name is empty.
    fn place(&self, name: &str) -> String;

    /// Takes the directory for this process alone.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another has it.
    fn lock(&self) -> io::Result<Self::Lock>;

    /// Names of all files, in no order.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes an empty file, in place of one that has the name.
    ///
    /// # Errors
    /// It cannot be made.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file that is there.
    ///
    /// # Errors
    /// It cannot be opened.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Gives a file another name, in place of one that has it. Durable after [`Self::sync_dir`].
    ///
    /// # Errors
    /// It cannot be renamed.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Durable after [`Self::sync_dir`].
    ///
    /// # Errors
    /// It cannot be removed.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable.
    ///
    /// # Errors
    /// They may not be durable, and may never become so.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file, read and written at offsets.
pub trait File: Send + Sync + 'static {
    /// Writes some of the parts, one after the other, at an offset. Gives how many bytes.
    ///
    /// # Errors
    /// Nothing was written.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Reads some bytes at an offset; 0 at the end.
    ///
    /// # Errors
    /// They cannot be read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Makes what was written durable, and the length.
    ///
    /// # Errors
    /// It may not be durable, and another call would not tell.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends (with zeroes that take no space).
    ///
    /// # Errors
    /// The length is as it was.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Extends with space that is really there.
    ///
    /// # Errors
    /// There is not enough.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Length, bytes.
    ///
    /// # Errors
    /// The system does not tell.
    fn size(&self) -> io::Result<u64>;

    /// Whether nobody has the file locked to copy it.
    fn is_free(&self) -> bool;

    /// From now on writes go past the system's page cache (`true`), or through it. Those past it are whole blocks of 4 KiB, in the file
    /// as in memory. Gives whether it is done so; it may still turn out that writes are refused with
    /// [`io::ErrorKind::InvalidInput`].
    fn direct(&self, on: bool) -> bool;

    /// What is durable will hardly be read: the system need not hold it in memory.
    fn is_cold(&self) {}
}

/// A directory of the file system.
#[derive(Clone, Debug)]
pub struct Directory {
    path: Arc<PathBuf>,
    writable: bool,
}

impl Directory {
    /// The directory, which is made if it is not there, for its owner alone, and durable: a journal is no use in a
    /// directory that the next crash forgets.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(path: &Path) -> io::Result<Self> {
        let missing: Vec<&Path> =
            path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.is_dir()).collect();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        for made in missing {
            let parent = made.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(Self { path: Arc::new(path.to_owned()), writable: true })
    }

    /// A directory that is there, to be looked at only.
    ///
    /// # Errors
    /// It is not there, or is none.
    pub fn read_only(path: &Path) -> io::Result<Self> {
        fs::read_dir(path)?;
        Ok(Self { path: Arc::new(path.to_owned()), writable: false })
    }

    fn options(&self) -> fs::OpenOptions {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(self.writable).mode(0o600);
        options
    }
}

impl Files for Directory {
    type File = fs::File;
    type Lock = Option<fs::File>;

    fn place(&self, name: &str) -> String {
        let path = if name.is_empty() { self.path.to_path_buf() } else { self.path.join(name) };
        path.display().to_string()
    }

    fn lock(&self) -> io::Result<Self::Lock> {
        let file = match self.options().create(self.writable).open(self.path.join("lock")) {
            // Whoever only looks finds no lock where nobody ever wrote.
            Err(e) if !self.writable && e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        file.try_lock()?;
        Ok(Some(file))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&*self.path)? {
            if names.len() == NAMES_MAX {
                return Err(io::Error::other(format!("more than {NAMES_MAX} files")));
            }
            // A name that is no text is not of the journal.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<fs::File> {
        self.options().create(true).truncate(true).open(self.path.join(name))
    }

    fn open(&self, name: &str) -> io::Result<fs::File> {
        self.options().open(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        fs::File::open(&*self.path)?.sync_all()
    }
}

impl File for fs::File {
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(self, parts, offset)?)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        fs::File::set_len(self, len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, rustix::fs::FallocateFlags::empty(), 0, len) {
            // The file system has no such call: what is written is there.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeroes = vec![0; 64 * 1024];
                let mut at = 0;
                while at < len {
                    let step = (len - at).min(zeroes.len() as u64);
                    self.write_all_at(&zeroes[..step as usize], at)?;
                    at += step;
                }
                Ok(())
            }
            done => Ok(done?),
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn is_free(&self) -> bool {
        self.try_lock().is_ok() && self.unlock().is_ok()
    }

    fn direct(&self, on: bool) -> bool {
        let flags = rustix::fs::fcntl_getfl(self);
        let flags = flags.map(|f| if on { f | OFlags::DIRECT } else { f - OFlags::DIRECT });
        flags.and_then(|f| rustix::fs::fcntl_setfl(self, f)).is_ok()
    }

    fn is_cold(&self) {
        let _ = rustix::fs::fadvise(self, 0, None, rustix::fs::Advice::DontNeed); // it is but advice
    }
}
