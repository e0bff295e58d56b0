//! Users, accounts and access, against the real binary: what the commands make decides what HTTP lets through.

#[path = "../harness/mod.rs"]
mod harness;

mod account_api;
mod account_fields;
mod audit;
mod commands;
mod contents;
mod contract;
mod doors;
mod janitor;
mod logins;
mod people;
mod private;
mod regions;
mod removed;
mod replicas;
mod rules;
mod site;
