// Package dtmsdk tries the Go client of DTM with nothing in the place of anything: a sidecar as a process of its own,
// participants that the client's Handle serves, and MariaDB, PostgreSQL and Redis behind their barriers. Start at world.
package dtmsdk
