// Package wire tests the door for clients of DTM as they meet it: real requests over HTTP, JSON-RPC and gRPC to a sidecar
// that stands alone, and a recording service that its branches live in. The files in testdata are the tests: what is asked,
// what is answered, which calls leave. A file that begins with `# over` runs once over each transport that it names, with the
// same answers. It never looks inside the sidecar. Start at testdata/README.md, which lists the words of the files.
package wire
