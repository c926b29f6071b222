// Adds an image, then finds things in the collection: go run . localhost:50050 mug.jpg "red mug"
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "example.com/find/regionsearch/v1"
)

func main() {
	address, path, words := os.Args[1], os.Args[2], os.Args[3]
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	client, ctx := pb.NewRegionSearchServiceClient(connection), context.Background()

	encoded, err := os.ReadFile(path)
	check(err)
	image := &pb.Image{Source: &pb.Image_Encoded{Encoded: encoded}}
	added, err := client.IngestImage(ctx, &pb.IngestImageRequest{Name: path, Image: image})
	check(err)
	fmt.Println(added.Outcome, added.ImageId)

	query := &pb.Query{Texts: []string{words}}
	found, err := client.Search(ctx, &pb.RegionSearchServiceSearchRequest{Query: query, Level: pb.Level_LEVEL_REGION, PageSize: 3})
	check(err)
	for _, hit := range found.Hits {
		fmt.Printf("%d %.3f %s %v\n", hit.Rank, hit.Score, hit.Image.Name, hit.Record.Box)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
