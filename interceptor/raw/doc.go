// Package raw passes connections to an endpoint byte for byte. It connects at once, before the client has said a word, so
// that protocols in which the server speaks first work; on Linux the bytes stay in the kernel (splice). An end of one
// side becomes an end for the other while the way back stays open, a reset becomes a reset. It never reads what it passes
// and never repeats anything. Start at Proxy; session.go is one connection, splice_linux.go how bytes move.
package raw
