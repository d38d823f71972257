//! int8 inner loops, each bit-equal to a scalar twin.
mod geometry;
pub use geometry::ConvGeometry;
