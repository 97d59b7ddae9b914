//! A store small enough to be right, and the mistakes that the explorer must find in it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Bounds, Report, Scenario, Wrong, crashes, failures, replay};
use crate::journal::disk::{Access, Disk, DiskFile, Lock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    ForgetsToSyncTheDirectory,
    SyncsBeforeWriting,
    TrustsTheLength,
    ConfirmsBeforeTheSync,
    AppendsAfterTheZeros,
    ServesWhatIsNotSafe,
    RenamesBeforeTheSync,
    RemovesBeforeTheRename,
    TakesAShortWriteForAWhole,
    TakesAShortReadForTheEnd,
    SyncsAgainAfterAFailure,
    TakesNotFoundForNew,
    ReadsOnce,
}

/// Records in one file with zeros behind them; opening it writes all of it anew.
#[derive(Debug)]
struct Toy {
    mistake: Mistake,
    file: Arc<dyn DiskFile>,
    end: u64,
    failed: bool,
    _lock: Box<dyn Lock>,
}

const ZEROS: usize = 2_048;

impl Toy {
    fn open(disk: &dyn Disk, mistake: Mistake) -> io::Result<(Toy, Vec<Vec<u8>>)> {
        let (dir, log, aside) = (Path::new("toy"), Path::new("toy/log"), Path::new("toy/aside"));
        disk.create_dir(dir)?;
        disk.sync_dir(Path::new("/"))?;
        let lock = disk.lock(Path::new("toy/lock"))?.ok_or(io::ErrorKind::ResourceBusy)?;
        let names = disk.list(dir)?;
        let mut records = Vec::new();
        let is_there = names.iter().any(|name| name == "log");
        if is_there {
            match disk.open(log, Access::Write) {
                Ok(file) => {
                    let bytes = read(&*file, mistake)?;
                    // A disk that errs once does not err twice in the same way.
                    if mistake != Mistake::ReadsOnce && bytes != read(&*file, mistake)? {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    let end;
                    (records, end) = decode(&bytes, mistake);
                    let end = match mistake {
                        Mistake::AppendsAfterTheZeros => Some(bytes.len() as u64),
                        Mistake::ServesWhatIsNotSafe => Some(end),
                        _ => None,
                    };
                    if let Some(end) = end {
                        return Ok((Toy { mistake, file, end, failed: false, _lock: lock }, records));
                    }
                }
                Err(error)
                    if mistake == Mistake::TakesNotFoundForNew && error.kind() == io::ErrorKind::NotFound => {
                }
                Err(error) => return Err(error),
            }
        }
        if names.iter().any(|name| name == "aside") {
            disk.remove(aside)?;
        }
        let file = disk.create(aside)?;
        let mut bytes: Vec<u8> = records.iter().flat_map(|record| encode(record)).collect();
        let end = bytes.len() as u64;
        bytes.resize(bytes.len() + ZEROS, 0);
        write(&*file, &bytes, 0, mistake)?;
        if mistake != Mistake::RenamesBeforeTheSync {
            file.sync()?;
        }
        if mistake == Mistake::RemovesBeforeTheRename && is_there {
            disk.remove(log)?;
            disk.sync_dir(dir)?;
        }
        disk.rename(aside, log)?;
        if mistake != Mistake::ForgetsToSyncTheDirectory {
            disk.sync_dir(dir)?;
        }
        if mistake == Mistake::RenamesBeforeTheSync {
            file.sync()?;
        }
        Ok((Toy { mistake, file, end, failed: false, _lock: lock }, records))
    }

    fn append(&mut self, record: &[u8], confirm: &mut dyn FnMut()) -> io::Result<()> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.failed = true;
        if self.mistake == Mistake::SyncsBeforeWriting {
            self.file.sync()?;
        }
        let bytes = encode(record);
        write(&*self.file, &bytes, self.end, self.mistake)?;
        match self.mistake {
            Mistake::SyncsBeforeWriting => {}
            Mistake::ConfirmsBeforeTheSync => {
                confirm();
                self.file.sync()?;
            }
            Mistake::SyncsAgainAfterAFailure => self.file.sync().or_else(|_| self.file.sync())?,
            _ => self.file.sync()?,
        }
        confirm();
        self.end += bytes.len() as u64;
        self.failed = false;
        Ok(())
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(2_166_136_261, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(16_777_619))
}

fn encode(record: &[u8]) -> Vec<u8> {
    [&(record.len() as u32).to_le_bytes(), &sum(record).to_le_bytes(), record].concat()
}

/// The records, and where they end.
fn decode(bytes: &[u8], mistake: Mistake) -> (Vec<Vec<u8>>, u64) {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some((len, behind)) = rest.split_first_chunk::<4>()
        && let Some((checksum, behind)) = behind.split_first_chunk::<4>()
        && let Some((record, behind)) = behind.split_at_checked(u32::from_le_bytes(*len) as usize)
        && !record.is_empty()
        && (mistake == Mistake::TrustsTheLength || sum(record) == u32::from_le_bytes(*checksum))
    {
        records.push(record.to_vec());
        rest = behind;
    }
    (records, (bytes.len() - rest.len()) as u64)
}

fn read(file: &dyn DiskFile, mistake: Mistake) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.len()? as usize];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => done += len,
        }
        if mistake == Mistake::TakesAShortReadForTheEnd {
            break;
        }
    }
    Ok(bytes)
}

fn write(file: &dyn DiskFile, mut bytes: &[u8], mut offset: u64, mistake: Mistake) -> io::Result<()> {
    while !bytes.is_empty() {
        let len = file.write_at(bytes, offset)?;
        if mistake == Mistake::TakesAShortWriteForAWhole {
            break;
        }
        (bytes, offset) = (&bytes[len..], offset + len as u64);
    }
    Ok(())
}

#[derive(Debug)]
struct Toys(Mistake);

#[derive(Clone, Debug, Default)]
struct History {
    confirmed: Vec<Vec<u8>>,
    under_way: Option<Vec<u8>>,
}

impl Scenario for Toys {
    type History = History;
    type Image = Vec<String>;

    fn work(&self, disk: Arc<dyn Disk>, round: u32, history: &mut History) {
        let Ok((mut toy, _)) = Toy::open(&*disk, self.0) else { return };
        // Over more than one sector, beginning in one that another record ends in.
        for (at, len) in [40, 700, 300].into_iter().enumerate() {
            let record = vec![b'a' + 3 * round as u8 + at as u8; len];
            history.under_way = Some(record.clone());
            let done = toy.append(&record, &mut || {
                history.confirmed.extend(history.under_way.take());
            });
            if done.is_err() {
                return;
            }
        }
    }

    fn look(&self, disk: Arc<dyn Disk>, history: &History) -> Result<Self::Image, String> {
        let (_, found) = Toy::open(&*disk, self.0).map_err(|error| format!("not opened: {error}"))?;
        let image = found.iter().map(|record| format!("{}x{}", record.len(), record[0] as char)).collect();
        let maybe = history.under_way.iter().cloned();
        let right = found == history.confirmed
            || found == history.confirmed.iter().cloned().chain(maybe).collect::<Vec<_>>();
        if right { Ok(image) } else { Err(format!("found {image:?}")) }
    }

    fn served(&self, image: &Self::Image, history: &mut History) {
        let under_way = history.under_way.take();
        if image.len() > history.confirmed.len() {
            history.confirmed.extend(under_way);
        }
    }
}

fn explore(mistake: Mistake, bounds: &Bounds) -> Result<(Report, Report), Wrong> {
    Ok((crashes(&Toys(mistake), bounds)?, failures(&Toys(mistake), bounds)?))
}

#[test]
fn a_store_without_mistakes_passes() {
    let bounds = Bounds::quick(1);
    let (crashes, failures) = explore(Mistake::None, &bounds).unwrap();
    println!("crashes: {crashes}\nfailures: {failures}");
    assert!(crashes.crashes >= 15 && crashes.found > 30 && crashes.recoveries > 200, "{crashes}");
    assert!(failures.failures > 500, "{failures}");
}

/// Checks that it is found, by both ways of search where it says so, and that its case alone shows it again.
fn is_found(mistake: Mistake) {
    let scenario = Toys(mistake);
    let mut found = Vec::new();
    for seed in 0..2 {
        let wrong = explore(mistake, &Bounds::quick(seed)).expect_err("the mistake is found");
        let again = replay(&scenario, &wrong.case.to_string()).expect_err("its case shows it again");
        assert_eq!(again.what, wrong.what, "{}", wrong.case);
        replay(&Toys(Mistake::None), &wrong.case.to_string()).expect("a right store passes the case");
        found.push(wrong.case.to_string());
    }
    println!("{mistake:?}: {}", found[0]);
}

#[test]
fn a_forgotten_sync_of_the_directory_is_found() {
    is_found(Mistake::ForgetsToSyncTheDirectory);
}

#[test]
fn a_sync_before_the_write_is_found() {
    is_found(Mistake::SyncsBeforeWriting);
}

#[test]
fn a_trusted_length_is_found() {
    is_found(Mistake::TrustsTheLength);
}

#[test]
fn an_answer_before_the_sync_is_found() {
    is_found(Mistake::ConfirmsBeforeTheSync);
}

#[test]
fn appending_after_zeros_is_found_at_the_second_restart() {
    is_found(Mistake::AppendsAfterTheZeros);
}

#[test]
fn serving_what_is_not_safe_is_found() {
    is_found(Mistake::ServesWhatIsNotSafe);
}

#[test]
fn a_rename_before_the_sync_is_found() {
    is_found(Mistake::RenamesBeforeTheSync);
}

#[test]
fn a_removal_before_the_rename_is_found() {
    is_found(Mistake::RemovesBeforeTheRename);
}

#[test]
fn a_short_write_taken_for_a_whole_one_is_found() {
    is_found(Mistake::TakesAShortWriteForAWhole);
}

#[test]
fn a_short_read_taken_for_the_end_is_found() {
    is_found(Mistake::TakesAShortReadForTheEnd);
}

#[test]
fn a_second_sync_after_a_failed_one_is_found() {
    is_found(Mistake::SyncsAgainAfterAFailure);
}

#[test]
fn not_found_taken_for_a_new_store_is_found() {
    is_found(Mistake::TakesNotFoundForNew);
}

#[test]
fn a_bit_that_was_read_wrong_is_found() {
    is_found(Mistake::ReadsOnce);
}
