//! Joins the registry to the federation.
//!
//! | part | its job |
//! | --- | --- |
//! | [`accounts`] | accounts as the federation agrees on them |
//! | [`claims`] | who may take pushes for an account |
//! | [`records`] | users, robots, keys and accounts for the auth room |
//!
//! Deliberately absent so far: content between regions. A push to an account of another region is refused with that
//! region's name, and a pull finds what this region holds.

pub mod accounts;
pub mod claims;
pub mod records;
