// Package compat runs published clients of DTM, as their users would, against the sidecar's door for them: each
// language has a bank behind its client's barrier on a real MariaDB and a program that begins transactions. It never
// changes a client and holds no part of the sidecar. Start at TestClients.
package compat
