//! What the server tells the device about each layer: fixed little-endian fields.

use super::ActivationError;

/// Length of [`Parameters`] on the wire.
pub const PARAMETERS_BYTES: usize = 16;
/// Length of a [`Request`] on the wire.
pub const REQUEST_BYTES: usize = 8;

/// How the device sends one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All bytes as they are.
    Raw,
    /// All bytes, entropy coded; raw where that is shorter.
    Entropy,
    /// Cells; where they would not pay, as [`Mode::Entropy`].
    Cells {
        /// About how many; [`Geometry`](super::Geometry) rounds up.
        cells: u32,
        /// Cells that each byte joins, 2 to 8.
        degree: u8,
        /// Low bits of every byte to send besides (0 to 7): the server's prediction then only has to be right to within
        /// half of `2^low_bits`. For processors that round differently everywhere.
        low_bits: u8,
    },
}

/// What the server tells the device about one layer of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// How to send.
    pub mode: Mode,
    /// Key of the checksum and of the code's graph.
    pub key: u64,
}

impl Parameters {
    /// Byte 0 mode (0 raw, 1 entropy, 2 cells), byte 1 degree, byte 2 low bits, byte 3 zero, bytes 4 to 7 cells,
    /// bytes 8 to 15 key. Fields that the mode does not use are zero.
    pub fn to_bytes(&self) -> [u8; PARAMETERS_BYTES] {
        let (mode, degree, low_bits, cells) = match self.mode {
            Mode::Raw => (0, 0, 0, 0),
            Mode::Entropy => (1, 0, 0, 0),
            Mode::Cells { cells, degree, low_bits } => (2, degree, low_bits, cells),
        };
        let [c0, c1, c2, c3] = cells.to_le_bytes();
        let [k0, k1, k2, k3, k4, k5, k6, k7] = self.key.to_le_bytes();
        [mode, degree, low_bits, 0, c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7]
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// [`ActivationError::Mode`]; [`ActivationError::Parameter`] for a field outside its domain.
    pub fn from_bytes(bytes: &[u8; PARAMETERS_BYTES]) -> Result<Self, ActivationError> {
        let [mode, degree, low_bits, zero, c0, c1, c2, c3, key @ ..] = *bytes;
        let cells = u32::from_le_bytes([c0, c1, c2, c3]);
        let key = u64::from_le_bytes(key);
        unused(zero)?;
        let mode = match mode {
            0 | 1 => {
                unused(degree)?;
                unused(low_bits)?;
                if cells != 0 {
                    return Err(ActivationError::Parameter { field: "cells", value: cells.into(), allowed: "0" });
                }
                if mode == 0 { Mode::Raw } else { Mode::Entropy }
            }
            2 => {
                checked_degree(degree)?;
                if low_bits > 7 {
                    let value = low_bits.into();
                    return Err(ActivationError::Parameter { field: "low bits", value, allowed: "0 to 7" });
                }
                Mode::Cells { cells, degree, low_bits }
            }
            other => return Err(ActivationError::Mode(other)),
        };
        Ok(Self { mode, key })
    }
}

/// What the server asks for when it could not recover a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Everything, entropy coded.
    Entropy,
    /// Further cells of another graph.
    Cells {
        /// About how many.
        cells: u32,
        /// Cells that each byte joins, 2 to 8.
        degree: u8,
        /// Number of this request for the layer in this step, from 1; chooses the graph.
        round: u8,
    },
}

impl Request {
    /// Byte 0 kind (1 entropy, 2 cells), byte 1 degree, byte 2 round, byte 3 zero, bytes 4 to 7 cells.
    pub fn to_bytes(&self) -> [u8; REQUEST_BYTES] {
        match self {
            Self::Entropy => [1, 0, 0, 0, 0, 0, 0, 0],
            Self::Cells { cells, degree, round } => {
                let [c0, c1, c2, c3] = cells.to_le_bytes();
                [2, *degree, *round, 0, c0, c1, c2, c3]
            }
        }
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// [`ActivationError::Mode`]; [`ActivationError::Parameter`] for a field outside its domain.
    pub fn from_bytes(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, ActivationError> {
        let [kind, degree, round, zero, cells @ ..] = *bytes;
        let cells = u32::from_le_bytes(cells);
        unused(zero)?;
        match kind {
            1 => {
                unused(degree)?;
                unused(round)?;
                match cells {
                    0 => Ok(Self::Entropy),
                    cells => Err(ActivationError::Parameter { field: "cells", value: cells.into(), allowed: "0" }),
                }
            }
            2 => {
                checked_degree(degree)?;
                if round == 0 {
                    return Err(ActivationError::Parameter { field: "round", value: 0, allowed: "1 to 255" });
                }
                Ok(Self::Cells { cells, degree, round })
            }
            other => Err(ActivationError::Mode(other)),
        }
    }
}

fn unused(byte: u8) -> Result<(), ActivationError> {
    match byte {
        0 => Ok(()),
        other => Err(ActivationError::Parameter { field: "an unused byte", value: other.into(), allowed: "0" }),
    }
}

fn checked_degree(degree: u8) -> Result<(), ActivationError> {
    if (2..=8).contains(&degree) {
        Ok(())
    } else {
        Err(ActivationError::Parameter { field: "degree", value: degree.into(), allowed: "2 to 8" })
    }
}
