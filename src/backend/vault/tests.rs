//! The client against a scripted Vault.
