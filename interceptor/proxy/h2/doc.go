// Package h2 carries HTTP/2 and gRPC between an application and its network, frame by frame, and shows each request to
// the Gate of package proxy. It decides where a stream goes, how much of it may wait and when a peer asks for too much;
// it never decides what belongs to a transaction, never repeats a request that may have been processed, and changes no
// field of a message. Start at Server.Serve, then stream.go; README.md has the picture.
package h2
