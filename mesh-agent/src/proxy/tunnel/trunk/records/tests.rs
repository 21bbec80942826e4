use super::*;

const CIPHERS: [&Algorithm; 3] = [&AES_128_GCM, &AES_256_GCM, &CHACHA20_POLY1305];

/// Both ends of one direction, which go on to another key after every fourth record.
fn pair(algorithm: &'static Algorithm, secret: u8) -> (Direction, Direction) {
    let end = || Direction::new(algorithm, Zeroizing::new([secret; SECRET]), 4).unwrap();
    (end(), end())
}

/// A record of this plaintext.
fn sealed(direction: &mut Direction, plaintext: &[u8]) -> Vec<u8> {
    let mut record = [&[0; HEADER], plaintext, &[0; TAG]].concat();
    direction.seal(&mut record).unwrap();
    record
}

#[test]
fn records_are_opened_in_their_order_under_one_key_after_another() {
    for algorithm in CIPHERS {
        let (mut sealing, mut opening) = pair(algorithm, 1);
        let mut ciphertexts = std::collections::HashSet::new();
        for _ in 0..10 {
            for plaintext in [&b""[..], b"one", &[7; 60_000]] {
                let mut record = sealed(&mut sealing, plaintext);
                assert_eq!(record.len(), HEADER + plaintext.len() + TAG);
                assert_eq!(length(*record.first_chunk().unwrap()), Ok(plaintext.len() + TAG));
                assert!(ciphertexts.insert(record.clone()), "the same plaintext never looks the same");
                assert_eq!(opening.open(&mut record).unwrap(), plaintext);
            }
        }
    }
}

#[test]
fn whatever_is_changed_is_noticed() {
    for algorithm in CIPHERS {
        let (mut sealing, _) = pair(algorithm, 1);
        let record = sealed(&mut sealing, b"plaintext");
        for place in 0..record.len() {
            for bit in 0..8 {
                let (_, mut opening) = pair(algorithm, 1);
                let mut changed = record.clone();
                changed[place] ^= 1 << bit;
                assert_eq!(opening.open(&mut changed), Err(RecordError::Broken), "{place} {bit}");
            }
        }
        for shorter in 0..record.len() {
            let (_, mut opening) = pair(algorithm, 1);
            assert_eq!(opening.open(&mut record.clone()[..shorter]), Err(RecordError::Broken), "{shorter}");
        }
        let (_, mut other) = pair(algorithm, 2);
        assert_eq!(other.open(&mut record.clone()), Err(RecordError::Broken), "another secret");
    }
}

#[test]
fn none_can_be_left_out_repeated_or_moved() {
    let (mut sealing, mut opening) = pair(&AES_256_GCM, 1);
    let records: Vec<_> = (0..12_u8).map(|number| sealed(&mut sealing, &[number])).collect();
    for (number, record) in records.iter().enumerate() {
        for (other, wrong) in records.iter().enumerate().filter(|(other, _)| *other != number) {
            // As a broken record ends the trunk, each try is another peer's.
            let (_, mut peer) = pair(&AES_256_GCM, 1);
            for before in &records[..number] {
                peer.open(&mut before.clone()).unwrap();
            }
            assert_eq!(
                peer.open(&mut wrong.clone()),
                Err(RecordError::Broken),
                "{other} in the place of {number}"
            );
        }
        assert_eq!(opening.open(&mut record.clone()).unwrap(), [u8::try_from(number).unwrap()]);
    }
}

#[test]
fn what_is_no_record_is_named() {
    assert_eq!(length([23, 3, 3, 1, 2]), Ok(258));
    assert_eq!(length(*b"GET /"), Err(RecordError::Header(*b"GET /")));
    assert_eq!(length([23, 2, 3, 0, 20]), Err(RecordError::Header([23, 2, 3, 0, 20])));
    let (mut sealing, _) = pair(&AES_128_GCM, 1);
    assert_eq!(sealing.seal(&mut [0; HEADER + TAG - 1]), Err(RecordError::Unsealable));
    assert_eq!(sealing.seal(&mut vec![0; HEADER + 65_536]), Err(RecordError::Unsealable));
}
