/// The protocol versions a node speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest.
    pub min: u8,
    /// The newest.
    pub max: u8,
}

impl VersionRange {
    /// What this build speaks. Version 1: the first.
    pub const OURS: Self = Self { min: 1, max: 1 };

    /// The range from `min` to `max`.
    pub const fn new(min: u8, max: u8) -> Self {
        Self { min, max }
    }

    /// The newest version that both sides speak.
    ///
    /// # Errors
    /// [`Incompatible`], naming both ranges.
    pub fn negotiate(self, theirs: Self) -> Result<u8, Incompatible> {
        let newest = self.max.min(theirs.max);
        match newest >= self.min.max(theirs.min) {
            true => Ok(newest),
            false => Err(Incompatible { ours: self, theirs }),
        }
    }
}

impl std::fmt::Display for VersionRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{} to {}", self.min, self.max),
        }
    }
}

/// Two sides have no protocol version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this node speaks protocol version {ours}, the other side {theirs}: {}", self.remedy())]
pub struct Incompatible {
    /// What this node speaks.
    pub ours: VersionRange,
    /// What the other side said it speaks.
    pub theirs: VersionRange,
}

impl Incompatible {
    fn remedy(&self) -> &'static str {
        match self.ours.max < self.theirs.min {
            true => "upgrade this node",
            false => "upgrade the other side",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_taken() {
        let ours = VersionRange::new(2, 4);
        assert_eq!(ours.negotiate(VersionRange::new(1, 3)), Ok(3));
        assert_eq!(ours.negotiate(VersionRange::new(4, 9)), Ok(4));
        assert_eq!(ours.negotiate(VersionRange::new(3, 3)), Ok(3));
    }

    #[test]
    fn ranges_that_do_not_overlap_are_named_both_with_what_to_do() {
        let refused = VersionRange::new(2, 4).negotiate(VersionRange::new(5, 6)).unwrap_err().to_string();
        assert_eq!(refused, "this node speaks protocol version 2 to 4, the other side 5 to 6: upgrade this node");
        assert!(VersionRange::new(2, 4).negotiate(VersionRange::new(1, 1)).is_err());
        assert!(VersionRange::new(2, 4).negotiate(VersionRange::new(9, 3)).is_err(), "a range turned around");
    }
}
