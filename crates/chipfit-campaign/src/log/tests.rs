//! Torn, damaged and hostile logs; a disk that fills up.

use proptest::prelude::*;

use super::*;
use crate::record::tests::any_record;

const ID: [u8; 32] = [7; 32];

fn log_of(records: &[Record]) -> Vec<u8> {
    header(&ID).into_iter().chain(records.iter().flat_map(Record::to_bytes)).collect()
}

fn read_all(bytes: &[u8]) -> Result<(Vec<Record>, Scan), NoLog> {
    let mut records = Vec::new();
    let found = scan(bytes, &ID, |r| records.push(r)).unwrap()?;
    Ok((records, found))
}

/// A disk with room for so many bytes.
struct Full {
    bytes: Vec<u8>,
    room: usize,
}

impl Storage for &mut Full {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let fits = bytes.len().min(self.room - self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..fits]);
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.bytes.truncate(length as usize);
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_log_cut_anywhere_keeps_its_whole_records(records in proptest::collection::vec(any_record(), 0..20), cut in 0usize..800) {
        let bytes = log_of(&records);
        let cut = cut.min(bytes.len());
        match read_all(&bytes[..cut]) {
            Err(why) => { prop_assert!(cut < HEADER_BYTES); prop_assert_eq!(why, NoLog::Header); }
            Ok((read, found)) => {
                let whole = (cut - HEADER_BYTES) / RECORD_BYTES;
                prop_assert_eq!(&read[..], &records[..whole]);
                prop_assert_eq!(found.end as usize, HEADER_BYTES + whole * RECORD_BYTES);
                prop_assert_eq!(found.damaged, u64::from(!(cut - HEADER_BYTES).is_multiple_of(RECORD_BYTES)));
            }
        }
    }

    #[test]
    fn one_damaged_record_costs_one_record(records in proptest::collection::vec(any_record(), 1..20), at in 0usize..640, bit in 0u8..8) {
        let mut bytes = log_of(&records);
        let at = at % (records.len() * RECORD_BYTES);
        bytes[HEADER_BYTES + at] ^= 1 << bit;
        let (read, found) = read_all(&bytes).unwrap();
        let mut wanted = records.clone();
        wanted.remove(at / RECORD_BYTES);
        prop_assert_eq!(read, wanted);
        prop_assert_eq!(found.damaged, 1);
    }

    #[test]
    fn hostile_bytes_are_read_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), valid_header: bool) {
        if valid_header {
            bytes.splice(0..0, header(&ID));
        }
        let _ = read_all(&bytes);
    }

    #[test]
    fn a_full_disk_leaves_a_valid_log(records in proptest::collection::vec(any_record(), 1..40), room in 0usize..1300) {
        let mut disk = Full { bytes: header(&ID).to_vec(), room: HEADER_BYTES + room };
        let mut log = Log::new(&mut disk, Path::new("trials.log"), HEADER_BYTES as u64);
        let mut safe = None;
        for record in &records {
            log.append(record).unwrap();
            match log.sync() {
                Ok(()) => {}
                Err(CampaignError::LogWrite { safe: n, .. }) => { safe = Some(n as usize); break; }
                Err(other) => panic!("{other}"),
            }
        }
        let whole = records.len().min(room / RECORD_BYTES);
        prop_assert_eq!(safe, (whole < records.len()).then_some(whole));
        let (read, found) = read_all(&disk.bytes).unwrap();
        prop_assert_eq!(&read[..], &records[..whole]);
        prop_assert_eq!(found.damaged, 0);
    }
}

#[test]
fn another_runs_log_is_refused() {
    assert_eq!(scan(&header(&[8; 32])[..], &ID, |_| {}).unwrap(), Err(NoLog::Identity));
}

#[test]
fn opening_cuts_the_torn_tail_and_writing_goes_on_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trials.log");
    let record = |number| Record {
        number,
        verdict: crate::outcome::Verdict {
            outcome: crate::outcome::Outcome::Benign,
            class: 3,
            is_sdc_top5: false,
            is_in_top5: true,
            shift: 0.5,
            masked: None,
        },
        strikes: Some(1),
    };
    let mut bytes = log_of(&[record(1), record(2)]);
    bytes.extend_from_slice(&record(3).to_bytes()[..20]);
    std::fs::write(&path, &bytes).unwrap();
    let mut seen = Vec::new();
    let (mut log, found) = Log::open(&path, &ID, |r| seen.push(r.number)).unwrap();
    assert_eq!((seen, found.damaged), (vec![1, 2], 1));
    log.append(&record(4)).unwrap();
    log.sync().unwrap();
    let (read, found) = read_all(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(read.iter().map(|r| r.number).collect::<Vec<_>>(), [1, 2, 4]);
    assert_eq!(found.damaged, 0);
}
