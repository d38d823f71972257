use super::{PickleError, WeightsFormat};
use crate::tensor::ConstTensor;
use bytes::Bytes;
use std::collections::BTreeMap;
pub(super) fn read(_bytes: Bytes) -> Result<(WeightsFormat, BTreeMap<String, ConstTensor>), PickleError> {
    Err(PickleError::End)
}
