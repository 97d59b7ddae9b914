use super::*;
use crate::journal::disk::{DiskFile, RealDisk};
use std::time::Instant;

fn median(mut v: Vec<f64>) -> (f64, f64) {
    v.sort_by(f64::total_cmp);
    (v[0], v[v.len() / 2])
}

struct Bare {
    file: Arc<dyn DiskFile>,
    at: u64,
}
impl Bare {
    fn new(dir: &Path, name: &str) -> Self {
        let file = RealDisk.create(&dir.join(name)).unwrap();
        crate::journal::layout::write_zeros(&*file, 0, 16 << 20).unwrap();
        file.sync().unwrap();
        Bare { file, at: 8192 }
    }
    fn put(&mut self, bytes: &[u8], sync: bool) {
        if self.at + bytes.len() as u64 > 16 << 20 {
            self.at = 8192;
        }
        self.file.write_at(bytes, self.at).unwrap();
        self.at += bytes.len() as u64;
        if sync {
            self.file.sync().unwrap();
        }
    }
}

#[test]
fn speed() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    for batch in [1usize, 100] {
        let mut bare = Bare::new(dir.path(), &format!("bare{batch}"));
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let j = open_on(disk, &dir.path().join(format!("j{batch}")), JournalOptions::new(Durability::Always))
            .unwrap();
        let unit = [7u8; 100];
        // touch all the room first
        let raw = vec![7u8; (batch * 104 + 40 + 7) & !7];
        let (mut b, mut q) = (vec![], vec![]);
        for _ in 0..80 {
            let n = 40;
            let t = Instant::now();
            for _ in 0..n {
                bare.put(&raw, true);
            }
            b.push(t.elapsed().as_secs_f64() / n as f64 * 1e6);
            let t = Instant::now();
            for _ in 0..n {
                let mut p = Position(0);
                for _ in 0..batch {
                    p = j.journal.add(&unit, Space::Ordinary, 0).unwrap();
                }
                j.journal.commit(p, &mut ignore).unwrap();
            }
            q.push(t.elapsed().as_secs_f64() / n as f64 * 1e6);
        }
        let (b, q) = (median(b), median(q));
        println!(
            "batch {batch}: bare min {:.1} med {:.1} us, journal min {:.1} med {:.1} us, ratio min {:.3} med {:.3}",
            b.0,
            b.1,
            q.0,
            q.1,
            b.0 / q.0,
            b.1 / q.1
        );
    }
    for threads in [64usize] {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let j =
            open_on(disk, &dir.path().join(format!("t{threads}")), JournalOptions::new(Durability::Always))
                .unwrap();
        let mut bare = Bare::new(dir.path(), "bare64");
        for _ in 0..5 {
            let per = 300usize;
            let t = Instant::now();
            let groups = std::sync::atomic::AtomicU64::new(0);
            std::thread::scope(|s| {
                for _ in 0..threads {
                    s.spawn(|| {
                        let unit = [7u8; 100];
                        for _ in 0..per {
                            let p = j.journal.add(&unit, Space::Ordinary, 0).unwrap();
                            let mut first = true;
                            j.journal
                                .commit(p, &mut |_, _| {
                                    if first {
                                        first = false;
                                        groups.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                                    }
                                })
                                .unwrap();
                        }
                    });
                }
            });
            let el = t.elapsed().as_secs_f64();
            let n = (threads * per) as f64;
            let g = n / groups.load(std::sync::atomic::Ordering::Relaxed) as f64;
            let raw = vec![7u8; (g * 104.0) as usize + 40];
            let t = Instant::now();
            let m = 300;
            for _ in 0..m {
                bare.put(&raw, true);
            }
            let be = t.elapsed().as_secs_f64() / m as f64 / g;
            println!(
                "threads {threads}: journal {:.0}/s, mean group {g:.1}, bare same grouping {:.0}/s ratio {:.3}",
                n / el,
                1.0 / be,
                (n / el) * be
            );
        }
    }
    {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let j = open_on(disk, &dir.path().join("os"), JournalOptions::new(Durability::Os)).unwrap();
        let mut bare = Bare::new(dir.path(), "bareos");
        for _ in 0..5 {
            let n = 200_000;
            let unit = [7u8; 100];
            let raw = [7u8; 144];
            let t = Instant::now();
            for _ in 0..n {
                bare.put(&raw, false);
            }
            let b = t.elapsed().as_secs_f64() / n as f64 * 1e9;
            let t = Instant::now();
            for _ in 0..n {
                let p = j.journal.add(&unit, Space::Ordinary, 0).unwrap();
                j.journal.commit(p, &mut ignore).unwrap();
                if j.journal.wants_checkpoint() {
                    j.journal.checkpoint(j.journal.end(), &mut std::iter::empty(), &mut ignore).unwrap();
                }
            }
            let q = t.elapsed().as_secs_f64() / n as f64 * 1e9;
            println!("os: bare {b:.0} ns, journal {q:.0} ns, ratio {:.3}", b / q);
        }
    }
}
