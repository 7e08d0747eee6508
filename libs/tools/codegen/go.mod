// Tools that generate code. Kept out of go.work: a workspace has one version
// per dependency, and buf would lift grpc and protobuf for the product.
module mqtt-integration/libs/tools/codegen

go 1.26.0

tool (
	google.golang.org/grpc/cmd/protoc-gen-go-grpc
	google.golang.org/protobuf/cmd/protoc-gen-go
)

require (
	google.golang.org/grpc/cmd/protoc-gen-go-grpc v1.6.2 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)
