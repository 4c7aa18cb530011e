package policies

// Code is one row of the table of findings. docs/reference/codes.md is tested against it.
type Code struct {
	Code   string
	Title  string
	Remedy string
}

// The codes. A number is for ever: a finding may get a new one, an old number is never used again.
const (
	codeUnreadable  = "TXM0001"
	codeSyntax      = "TXM0002"
	codeUnknownKey  = "TXM0003"
	codeMissing     = "TXM0004"
	codeType        = "TXM0005"
	codeValue       = "TXM0006"
	codeDuration    = "TXM0007"
	codeName        = "TXM0008"
	codeDuplicate   = "TXM0009"
	codeKind        = "TXM0010"
	codeYAMLFeature = "TXM0011"
	codeMatch       = "TXM0012"
	codePattern     = "TXM0013"
	codeOneOf       = "TXM0014"
	codeTemplate    = "TXM0015"
	codeCEL         = "TXM0016"
	codeResult      = "TXM0017"
	codeUnavailable = "TXM0018"
	codeVariable    = "TXM0019"
	codeSecret      = "TXM0020"
	codeHeaders     = "TXM0021"
	codeLostAnswer  = "TXM0022"
	codeNoQuery     = "TXM0023"
	codeBarrier     = "TXM0024"
	codeStream      = "TXM0025"
	codeGrant       = "TXM0027"
	codeOrigin      = "TXM0028"
	codeSetHeader   = "TXM0029"
	codeCaller      = "TXM0030"
	codeMethod      = "TXM0031"
	codeDescriptors = "TXM0032"
	codeMessage     = "TXM0033"
	codeReserved    = "TXM0034"
	codeNoBarrier   = "TXM0040"
	codeSameMatch   = "TXM0041"
	codeSafeMethod  = "TXM0042"
	codeReflection  = "TXM0043"
)

// Codes returns the table of findings in the order of their numbers.
func Codes() []Code {
	return []Code{
		{codeUnreadable, "A policy file cannot be read", "check that the path exists and that the process may read it"},
		{codeSyntax, "The file is not YAML", "correct the syntax at the place shown; every other file was still checked"},
		{codeUnknownKey, "Unknown key", "correct the spelling, or remove the key; docs/reference/policy.md lists all keys"},
		{codeMissing, "A required key is missing", "add the key; docs/reference/policy.md shows an example"},
		{codeType, "A value has the wrong shape", "write the shape that the message names"},
		{codeValue, "A value is not one of those allowed", "use one of the values that the message lists"},
		{codeDuration, "Not a duration", "write a positive duration with a unit, such as 500ms, 30s, 2m or 1h"},
		{codeName, "Not a valid name", "use lower-case letters, digits and '-', at most 63, beginning and ending with a letter or digit"},
		{codeDuplicate, "A name is used twice", "give each document of a namespace, and each rule of a document, a name of its own"},
		{codeKind, "Unknown kind or version of document", "write apiVersion: txmesh.io/v1beta1 and kind: TransactionPolicy, TransactionGrant, AccessPolicy, TrafficPolicy or PolicyTest"},
		{codeYAMLFeature, "YAML feature that policies do not have", "write the value out: anchors, aliases, merge keys and tags are not read"},
		{codeMatch, "A match names nobody", "name the service (or namespace/service), or the host of a third party"},
		{codePattern, "Not a valid path pattern", "begin with '/'; write a variable as a whole segment {name}, or {name...} at the end"},
		{codeOneOf, "Not exactly one way to settle a call", "give exactly one of undo, reserve, hold and irreversible"},
		{codeTemplate, "Not a valid template", "write values as {path.id} or {response.body.id}, and braces themselves as {{ and }}"},
		{codeCEL, "Not a valid expression", "correct the CEL expression at the place shown; docs/reference/policy.md lists the variables"},
		{codeResult, "An expression has the wrong type", "let the expression yield the type that the message names"},
		{codeUnavailable, "A value is not known at this point", "use only what is known then; a query, for example, runs when there is no answer"},
		{codeVariable, "The path pattern has no such variable", "name the segment in match.path, or correct the spelling"},
		{codeSecret, "A secret header would be journaled", "do not read Authorization or Cookie; give the undo its own credentials by auth"},
		{codeHeaders, "Headers are read one by one", "name the header, in lower case: request.headers[\"x-order\"]"},
		{codeLostAnswer, "The undo needs an answer that may be lost", "add a query that finds the answer again, or call a service with a sidecar (barrier: Proxy)"},
		{codeNoQuery, "onUnknown: Query without a way to ask", "add a query, or a barrier that answers it, or choose Undo or Stop"},
		{codeBarrier, "A barrier that nobody keeps", "name the callee as a service if it has a sidecar, else use barrier: Key or None"},
		{codeStream, "Event streams and upgrades cannot be branches", "match a request that has one answer with an end"},
		{codeGrant, "Another namespace has not granted its service", "add a TransactionGrant in that namespace: spec {to: [NAMESPACE], services: [SERVICE]}"},
		{codeOrigin, "A template leaves its service", "write a path that begins with '/', without host, dot segments or query"},
		{codeSetHeader, "A header that a call may not set", "leave it to the sidecar; credentials are given by auth"},
		{codeCaller, "Not a caller", "write a SPIFFE id such as spiffe://DOMAIN/ns/*/sa/gateway, the name of a service, or * for everybody"},
		{codeMethod, "Not a unary method of gRPC", "write package.Service/Method as the .proto file has it; streams pass beside transactions"},
		{codeDescriptors, "Not a descriptor set", "paste the output of `protoc --include_imports --descriptor_set_out=/dev/stdout FILE.proto | gzip | base64`, or name a *.binpb file beside the policy"},
		{codeMessage, "The message has no such field", "use the names of the .proto file; update spec.descriptors if it has changed"},
		{codeReserved, "A key that is not supported yet", "remove the key, and do what the message names instead"},
		{codeNoBarrier, "No barrier at the callee", "repeats and late calls reach the callee; choose Proxy, Key or Database if it has one"},
		{codeSameMatch, "Two rules match the same requests", "keep one; the older document wins, then the first name"},
		{codeSafeMethod, "A branch over a safe method", "GET, HEAD and OPTIONS should change nothing; check that this call needs an undo"},
		{codeReflection, "Types of messages are asked of the service", "let the service serve gRPC reflection, or add spec.descriptors"},
	}
}
