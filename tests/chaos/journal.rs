//! What a process has seen, a line each, in a file that outlives it. SIGKILL takes nothing back
//! that was written.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

pub struct Journal(File);

impl Journal {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // Ends the line that a predecessor may have died in.
        file.write_all(b"\n")?;
        Ok(Self(file))
    }

    pub fn note(&self, line: &str) {
        let line = format!("{line}\n");
        (&self.0).write_all(line.as_bytes()).expect("the journal is written");
    }
}

/// Reads what has come since.
pub struct Tail {
    path: PathBuf,
    read: u64,
}

impl Tail {
    pub fn new(path: PathBuf) -> Self {
        Self { path, read: 0 }
    }

    /// Whole lines only.
    pub fn lines(&mut self) -> Vec<String> {
        let mut text = String::new();
        let Ok(mut file) = File::open(&self.path) else { return Vec::new() };
        file.seek(SeekFrom::Start(self.read)).expect("seek");
        file.read_to_string(&mut text).expect("text");
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        text[..whole].lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}
