//! The loss: softmax cross-entropy with label smoothing.

/// Loss of one picture; writes `weight` times the gradient of the logits.
///
/// The target is `1 - smoothing + smoothing / classes` for the label and `smoothing / classes` for the others; the loss
/// is `-sum target * log softmax`.
pub(super) fn cross_entropy(logits: &[f32], label: u32, smoothing: f32, weight: f32, gradient: &mut [f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
    let even = f64::from(smoothing) / logits.len().max(1) as f64;
    let mut loss = 0.0;
    for (class, (&logit, gradient)) in logits.iter().zip(gradient).enumerate() {
        let is_label = u32::try_from(class) == Ok(label);
        let target = even + if is_label { 1.0 - f64::from(smoothing) } else { 0.0 };
        let log_share = f64::from(logit - most) - sum.ln();
        loss -= target * log_share;
        *gradient = ((log_share.exp() - target) * f64::from(weight)) as f32;
    }
    loss
}

/// Whether the label has the largest logit; the first of equal ones counts.
pub(super) fn is_hit(logits: &[f32], label: u32) -> bool {
    let mut best = (0, f32::NEG_INFINITY);
    for (class, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (class, logit);
        }
    }
    u32::try_from(best.0) == Ok(label)
}
