//! Both ends together.

use proptest::prelude::*;

use super::graph::mix;
use super::*;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (mix(seed ^ mix(i)) >> 32) as u8).collect()
}

/// `x` with `errors` distinct bytes changed.
fn strike(x: &[u8], errors: usize, seed: u64) -> Vec<u8> {
    let mut y = x.to_vec();
    let mut left = errors;
    let mut count = 0u64;
    while left > 0 {
        count += 1;
        let draw = mix(seed ^ mix(count));
        let at = (draw % x.len() as u64) as usize;
        let value = match draw >> 62 {
            0 => 255,
            1 => 0,
            _ => x[at] ^ (1 << (draw >> 40 & 7)),
        };
        if y[at] == x[at] && value != x[at] {
            y[at] = value;
            left -= 1;
        }
    }
    y
}

/// Plays both ends; gives the bytes sent and the requests made.
fn play(x: &[u8], y: &[u8], parameters: Parameters, prior: &Prior) -> (usize, usize) {
    let mut decoder = Decoder::new(x.len(), parameters, prior.clone());
    let mut payload = first(y, &parameters);
    assert!(payload.len() <= y.len() + HEADER_BYTES);
    let mut sent = payload.len();
    for requests in 0..10 {
        match decoder.try_decode(x, &payload).unwrap() {
            Outcome::Recovered(layer) => {
                assert_eq!(layer, y);
                return (sent, requests);
            }
            Outcome::NeedsMore(request) => {
                let request = Request::from_bytes(&request.to_bytes()).unwrap();
                payload = more(y, &parameters, &request);
                sent += payload.len();
            }
        }
    }
    panic!("no end of requests");
}

#[test]
fn sparse_errors_need_one_payload() {
    for (length, errors) in [(640, 3), (4096, 10), (65_536, 100), (300_000, 700), (1 << 20, 300)] {
        let x = noise(1, length);
        let y = strike(&x, errors, 2);
        let cells = (errors * 7 + 32) as u32;
        let parameters = Parameters { mode: Mode::Cells { cells, degree: 5, low_bits: 0 }, key: 77 };
        let (sent, requests) = play(&x, &y, parameters, &Prior::uniform());
        assert_eq!(requests, 0, "{length} bytes, {errors} errors");
        assert!(sent < errors * 8 + 200, "{length} bytes, {errors} errors: {sent} bytes sent");
    }
}

#[test]
fn too_many_errors_lead_to_requests_and_never_to_wrong_bytes() {
    for (length, errors) in [(640, 300), (4096, 100), (65_536, 1500), (65_536, 60_000)] {
        let x = noise(3, length);
        let y = strike(&x, errors, 4);
        let parameters = Parameters { mode: Mode::Cells { cells: 100, degree: 4, low_bits: 0 }, key: 5 };
        let (_, requests) = play(&x, &y, parameters, &Prior::uniform());
        assert!(requests >= 1, "{length} bytes, {errors} errors");
    }
}

#[test]
fn low_bits_bridge_small_differences() {
    let x = noise(5, 20_000);
    let mut y: Vec<u8> = x.iter().zip(noise(6, 20_000)).map(|(&x, r)| x.saturating_add(r & 1)).collect();
    for at in (0..20_000).step_by(400) {
        y[at] ^= 0x80;
    }
    let parameters = Parameters { mode: Mode::Cells { cells: 320, degree: 4, low_bits: 2 }, key: 5 };
    let (sent, requests) = play(&x, &y, parameters, &Prior::uniform());
    assert_eq!(requests, 0);
    assert!(sent < 5600, "{sent}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_pair_is_recovered(seed: u64, length in 1usize..6000, share in 0.0f64..0.3, cells in 0u32..3000, degree in 2u8..9, low_bits in 0u8..4) {
        let x = noise(seed, length);
        let y = strike(&x, (length as f64 * share) as usize, !seed);
        let parameters = Parameters { mode: Mode::Cells { cells, degree, low_bits }, key: seed };
        play(&x, &y, parameters, &Prior::uniform());
    }

    #[test]
    fn damaged_payloads_are_refused_or_lead_to_requests(seed: u64, at: prop::sample::Index, change in 1u8.., cut: prop::sample::Index, mode in 1usize..3) {
        let x = noise(seed, 3000);
        let y = strike(&x, 20, !seed);
        let modes = [Mode::Raw, Mode::Entropy, Mode::Cells { cells: 150, degree: 4, low_bits: 0 }];
        let parameters = Parameters { mode: modes[mode], key: seed };
        // Few values, so that entropy coding is chosen.
        let y: Vec<u8> = if mode == 1 { y.iter().map(|byte| byte & 7).collect() } else { y };
        let payload = first(&y, &parameters);
        let mut damaged = payload.clone();
        *at.get_mut(&mut damaged) ^= change;
        let short = &payload[..cut.index(payload.len())];
        for payload in [damaged.as_slice(), short] {
            let mut decoder = Decoder::new(x.len(), parameters, Prior::uniform());
            if let Ok(Outcome::Recovered(layer)) = decoder.try_decode(&x, payload) {
                prop_assert_eq!(&layer, &y, "damage may be outvoted, never believed");
            }
        }
    }

    #[test]
    fn hostile_bytes_are_no_panic(payload in prop::collection::vec(any::<u8>(), 0..300), mode in 0u8..4, cells in any::<u32>(), length in 0usize..400) {
        let parameters = Parameters { mode: Mode::Cells { cells, degree: 2 + mode, low_bits: mode }, key: 1 };
        let mut decoder = Decoder::new(length, parameters, Prior::uniform());
        let mut payload = payload;
        if let Some(first) = payload.first_mut() {
            *first = mode;
        }
        let _ = decoder.try_decode(&vec![0; length], &payload);
        let _ = first(&payload, &parameters);
    }

    #[test]
    fn parameters_and_requests_come_back(bytes: [u8; PARAMETERS_BYTES], request: [u8; REQUEST_BYTES], kind in 0u8..3, low in 0u8..16) {
        let mut bytes = bytes;
        (bytes[0], bytes[2], bytes[3]) = (kind, low, 0);
        if let Ok(parameters) = Parameters::from_bytes(&bytes) {
            prop_assert_eq!(parameters.to_bytes(), bytes);
        }
        let mut request = request;
        (request[0], request[3]) = (kind, 0);
        if let Ok(asked) = Request::from_bytes(&request) {
            prop_assert_eq!(asked.to_bytes(), request);
        }
    }
}
